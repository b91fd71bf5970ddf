"""The dossier of a study that hospitals with keys of their own have trained, from the coordinator's folder."""

import json
from pathlib import Path

import pytest

from medx.dossier.__main__ import main
from medx.site.conduct import conduct, run_folder
from tests.site.consortium_example import NAMES, SECURE, Example, approve, make_example, signed, study_of, wired


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("consortium"))


def test_a_coordinators_run_shows_what_hospitals_signed_for_and_says_what_it_does_not_know(
    example: Example, tmp_path: Path
) -> None:
    study = study_of(example, *SECURE)
    approve(example, study)
    with wired(example, signed(example, study)) as grid:
        assert conduct(example.coordinator, signed(example, study), grid).status == "finished"
    folder = run_folder(example.coordinator, study)
    main([str(folder), "--html", str(tmp_path / "d.html"), "--json", str(tmp_path / "d.json")])
    (run,) = json.loads((tmp_path / "d.json").read_text())["runs"]
    chapters = {each["key"]: each for each in run["chapters"]}
    keys = {each["key"] for chapter in run["chapters"] for each in chapter["sentences"]}
    assert {"training.deployed", "sites.admitted", "sites.signed", "quality.unmeasured"} <= keys
    assert not {"training.simulated", "training.dealt", "observers.in_simulation", "sites.no_receipt"} & keys
    assert "Nobody has measured how good it is" in run["answer"][1]["text"]
    assert "each on a machine of its own" in run["answer"][0]["text"]
    (sites,) = chapters["sites"]["tables"]
    assert [row[0] for row in sites["rows"]] == [f"{number} {name}" for number, name in enumerate(NAMES)]
    assert all(row["receipt_signed"] and row["receipt_steps"] == row["steps"] for row in sites["records"])
