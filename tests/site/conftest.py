"""A consortium of three hospitals for each test, in which nothing has happened yet."""

from collections.abc import Callable
from pathlib import Path

import pytest

from medx.site.conduct import run_folder
from tests.site.consortium_example import Example, fresh, make_example, study_of, wired
from tests.site.disturbance import Calm, prepared
from tests.site.test_hospital import conduct_quickly


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("consortium"))


@pytest.fixture
def example(pristine: Example, tmp_path: Path) -> Example:
    return fresh(pristine, tmp_path / "lungs")


@pytest.fixture(scope="module")
def calm(pristine: Example, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Calm]:
    """The study of these overrides, which ended undisturbed in a copy of the consortium; once a module."""
    known: dict[tuple[str, ...], Calm] = {}

    def of(own: tuple[str, ...]) -> Calm:
        if own not in known:
            example = fresh(pristine, tmp_path_factory.mktemp("calm") / "lungs")
            study = study_of(example, *own)
            text = prepared(example, study)
            with wired(example, text) as grid:
                assert conduct_quickly(example, text, grid).status == "finished"
            known[own] = Calm(study, text, run_folder(example.coordinator, study))
        return known[own]

    return of
