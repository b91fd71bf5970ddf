"""One cache of features and noise calibrations for all runs of a test session, and one reference run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.program import Ran, call

REFERENCE = ("federation.num_rounds=5",)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds caches as long as the session lasts, the same for its workers side by side."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.getbasetemp().parent / "shared_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def use_cache(shared_cache: Path) -> Iterator[None]:
    """Runs of these tests find the session's cache; other tests do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDX_CACHE", str(shared_cache))
        patch.setenv("OMP_NUM_THREADS", "1")  # of the processes that tests start: sums in the same order as here
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Ran:
    """Five rounds, never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDX_CACHE", str(shared_cache))
        ran = call(tmp_path_factory.mktemp("reference"), *REFERENCE)
    assert ran.code == 0, ran.err
    return ran
