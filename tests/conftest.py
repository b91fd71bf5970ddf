"""One cache of features and noise calibrations for all tests of a session, and none that a person has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds caches as long as the session lasts, the same for its workers side by side."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.getbasetemp().parent / "shared_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def use_cache(shared_cache: Path) -> Iterator[None]:
    """What tests run finds the session's cache; what is about an empty one sets its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDX_CACHE", str(shared_cache))
        yield
