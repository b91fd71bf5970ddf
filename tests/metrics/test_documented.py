"""``docs/results.md`` describes exactly the fields and metrics that there are."""

import re
from pathlib import Path

import medx.results
from medx.metrics import metric_names
from medx.released import Record

TEXT = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))


def described(section: str) -> set[str]:
    """Names in the first column of a section's table."""
    cells = re.findall(r"^\| (`.*?) \|", SECTIONS[section], re.M)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_field_is_described_and_nothing_else() -> None:
    records = [each for each in vars(medx.results).values() if isinstance(each, type) and issubclass(each, Record)]
    models = {each.__name__: set(each.model_fields) for each in records if each is not Record}
    assert {name: described(name) for name in models} == models
    assert set(SECTIONS) == {*models, "Metrics"}


def test_every_metric_is_described() -> None:
    names = {*metric_names(2, "binary"), *metric_names(2, "ordinal"), *metric_names(1, "multilabel")}
    assert described("Metrics") == names
