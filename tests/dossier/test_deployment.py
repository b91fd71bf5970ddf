"""The dossier of a study that hospitals with keys of their own have trained, from the coordinator's folder."""

import json
from pathlib import Path

import pytest

from medx.dossier.__main__ import main
from medx.site.conduct import conduct, run_folder
from tests.dossier.examples import result
from tests.site.consortium_example import NAMES, SECURE, Example, approve, make_example, signed, study_of, wired


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return make_example(tmp_path_factory.mktemp("consortium"))


def test_a_coordinators_run_shows_what_hospitals_signed_for_and_says_what_it_does_not_know(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(example, *SECURE)
    approve(example, study)
    with wired(example, signed(example, study)) as grid:
        assert conduct(example.coordinator, signed(example, study), grid).status == "finished"
    folder = run_folder(example.coordinator, study)
    north, files = str(example.kit("north")), ["--html", str(tmp_path / "d.html"), "--json", str(tmp_path / "d.json")]
    main([str(folder), "--site", north, *files])
    (run,) = json.loads((tmp_path / "d.json").read_text())["runs"]
    chapters = {each["key"]: each for each in run["chapters"]}
    keys = {each["key"] for chapter in run["chapters"] for each in chapter["sentences"]}
    assert {"training.deployed", "sites.admitted", "sites.signed", "quality.unmeasured"} <= keys
    assert not {"training.simulated", "training.dealt", "observers.in_simulation", "sites.no_receipt"} & keys
    assert "Nobody has measured how good it is" in run["answer"][1]["text"]
    assert "each on a machine of its own" in run["answer"][0]["text"]
    sites, verdicts, policies = chapters["sites"]["tables"]
    assert [row[0] for row in sites["rows"]] == [f"{number} {name}" for number, name in enumerate(NAMES)]
    assert [row["ledger_steps"] for row in sites["records"]] == [sites["records"][0]["steps"], None, None]
    assert [row["event"] for row in verdicts["records"]] == ["admitted", "reserved", "receipt", "reported"]
    assert policies["records"][0]["max_epsilon"] == "10"
    assert {"sites.agrees", "sites.logged"} <= keys
    assert "sites.refused" not in keys
    assert all(row["receipt_signed"] and row["receipt_steps"] == row["steps"] for row in sites["records"])

    # Without the kit nothing of it is told; a log of other studies, one to be released and a changed one are refused.
    main([str(folder), "--json", str(tmp_path / "d.json")])
    assert "sites.logged" not in (tmp_path / "d.json").read_text()
    other = result()
    other.save(tmp_path / "other.json")
    audit = example.kit("north") / "audit.jsonl"
    for arguments, line in (
        ([str(tmp_path / "other.json"), "--site", north], "its log has no entry of these runs"),
        ([str(folder), "--released", "--site", north], "accepted: without --released"),
    ):
        assert line in refusal(arguments, capsys)
    audit.write_text(audit.read_text().replace("admitted", "refused!"))
    assert "audit log" in refusal([str(folder), "--site", north], capsys)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    return line
