"""One reference run for the tests of a session, and one thread for the processes that they start."""

from collections.abc import Iterator

import pytest
import torch

from tests.program import Ran, call

REFERENCE = ("federation.num_rounds=5",)
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of the processes that tests start are in the same order as here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Five rounds, never interrupted."""
    ran = call(tmp_path_factory.mktemp("reference"), *REFERENCE)
    assert ran.code == 0, ran.err
    return ran
