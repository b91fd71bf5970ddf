import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Accounting is computed here, not read from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
