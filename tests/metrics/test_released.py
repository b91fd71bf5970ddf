"""What leaves the house: every field says who may see it, and what is the owner's is in no released record."""

import json
from pathlib import Path

import pytest

from medx.privacy.statement import statement
from medx.released import Owner, Public, Record, Release, marked, released
from medx.results import ExperimentResult, RoundRecord, released_config
from tests.privacy.test_mechanisms import configured, exposure
from tests.tracking.examples import make_record, make_result

KINDS = dict(marked(ExperimentResult))
# Exact functions of training records, as the outside reading found them, and their siblings.
EXACT = {
    "attacks",
    "privacy.noise",
    "dataset.content_hash", "dataset.md5", "dataset.class_counts", "dataset.shared_patients", "clients",
    "majority_accuracy", "rounds.seconds",
    "timing", "error", "config_hash", "validation", "test", "rounds.metrics", "curves", "degenerate", "baselines",
    "seed", "subgroups", "personal",
}  # fmt: skip


def test_what_settles_a_record_exactly_is_its_owners() -> None:
    assert {path for path, kind in KINDS.items() if kind is Release.OWNER} == EXACT


def test_a_field_that_no_list_names_is_refused() -> None:
    class Careless(Record):
        known: Public[int]
        forgotten: dict[str, float]

    class Outer(Record):
        parts: list[Careless]

    with pytest.raises(TypeError, match=r"Careless\.forgotten"):
        dict(marked(Outer))


def test_the_statement_names_every_field() -> None:
    for option in ("local_dp", "none"):
        text = statement(configured(option).plan(exposure()))
        lines = [line for line in text.splitlines() if line.startswith("Fields ")]
        assert len(lines) == len(Release)
        for path, kind in KINDS.items():
            head, _, rest = path.partition(".")
            line = lines[list(Release).index(kind)]
            assert head in line, path
            assert rest in line, path


def test_the_released_record_has_nothing_of_the_owners(tmp_path: Path) -> None:
    config = {"seed": 4711, "dataset": {"name": "mine", "md5": "f00d"}, "privacy": {"epsilon": 1.0}}
    whole = make_result(
        config=config, seed=4711, error="row 17 is 9", status="failed", config_hash="beef", rounds=[make_record(1, 1.0)]
    )
    whole.dataset.content_hash = "cafe"
    whole.released().save(tmp_path / "released.json")
    text = (tmp_path / "released.json").read_text()
    for secret in ("4711", "f00d", "row 17", "beef", "cafe", "0.95", "12.5", "0.625", '"train": 0.5'):
        assert secret not in text, secret
    read = ExperimentResult.load(tmp_path / "released.json")
    assert (read.view, read.status, read.threshold) == ("released", "failed", 0.6)
    for path, kind in KINDS.items():
        found = [read.model_dump()]
        for name in path.split("."):
            found = [each[name] for part in found for each in (part if isinstance(part, list) else [part]) if each]
        if kind is Release.OWNER:
            assert not any(found), path
    assert whole.test, "the owner's view is as it was"
    assert json.loads(whole.model_dump_json())["view"] == "owner"


def test_a_round_by_itself_and_a_configuration_are_stripped_too() -> None:
    record = released(make_record(3, 2.0))
    assert (record.round, record.epsilon, record.metrics, record.seconds) == (3, 2.0, {}, {})
    assert isinstance(record, RoundRecord)
    assert released_config({"seed": 1, "dataset": {"md5": "x", "size": 28}}) == {"dataset": {"size": 28}}
    assert released_config({"seed": 1, "dataset": "phantom"}) == {"dataset": "phantom"}
    places = {"cache": "/a", "tracking": {"uri": "/b", "x": 1}, "privacy": {"ledger": "/c", "epsilon": 1.0}}
    assert released_config(places) == {"tracking": {"x": 1}, "privacy": {"epsilon": 1.0}}


def test_an_owners_field_must_have_something_to_be_without() -> None:
    class Bare(Record):
        kept: Owner[int | None] = None

    assert released(Bare(kept=3)).kept is None
