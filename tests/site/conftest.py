"""A consortium of three hospitals for each test, in which nothing has happened yet."""

from pathlib import Path

import pytest

from tests.site.consortium_example import Example, fresh, make_example


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("consortium"))


@pytest.fixture
def example(pristine: Example, tmp_path: Path) -> Example:
    return fresh(pristine, tmp_path / "lungs")
