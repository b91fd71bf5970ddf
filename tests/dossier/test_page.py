"""Page, JSON and Markdown: the same words, numbers that are the result's, and nothing of the owner's released."""

import html
import json
import re
import shutil
import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jsonschema import Draft202012Validator, ValidationError

from medx.dossier.__main__ import main
from medx.dossier.chapters import KINDS
from medx.dossier.observers import ROWS
from medx.dossier.operating import operating_points, wilson
from medx.dossier.page import as_html, as_json, as_markdown, make_dossier
from medx.dossier.record import SCHEMA, schema
from medx.dossier.subject import read
from medx.results import CurveData, Interval
from medx.site.consortium import Consortium, Member, canonical
from tests.dossier.examples import CONFIG, attack, group, result, subject
from tests.program import Ran, call

DOCS = Path(__file__).parents[2] / "docs"
MADE = "2031-01-02 03:04 UTC"
RICH = {
    "attacks": [attack()],
    "subgroups": [group("f", 0.8), group("m", 0.9)],
    "curves": CurveData(confusion_matrix=[[37, 3], [1, 19]], roc={"1": [[0.0, 0.0], [0.1, 0.9], [1.0, 1.0]]},
                        calibration=[{"low": 0.5, "high": 0.6, "count": 60, "confidence": 0.55, "accuracy": 0.6}]),
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run on drawn images."""
    made = call(tmp_path_factory.mktemp("dossier") / "run", "privacy=local_dp", "privacy.epsilon=8")
    assert made.code == 0, made.err
    return made


def words(page: str) -> str:
    """What a reader sees."""
    return html.unescape(re.sub(r"<[^>]+>", "", page)).replace("\N{NO-BREAK SPACE}", " ")


def test_page_and_markdown_carry_every_sentence_of_the_json() -> None:
    runs = [subject(RICH), subject({".number": 2})]
    dossier = make_dossier(runs, MADE)
    page, text = words(as_html(dossier, runs)), as_markdown(dossier)
    said = [each.text for each in dossier.together]
    for run in dossier.runs:
        said += [each.text for each in (*run.answer, *run.first)]
        said += [each.text for chapter in run.chapters for each in chapter.sentences]
    assert len(said) > 60
    for each in said:
        assert each in text
        assert each.replace("`", "") in page
    for table in (table for run in dossier.runs for chapter in run.chapters for table in chapter.tables):
        assert table.title in page
        assert table.markdown in text


def test_the_page_needs_nothing_else() -> None:
    runs = [subject(RICH), subject({".number": 2} | RICH)]
    page = as_html(make_dossier(runs, MADE), runs)
    outside = set(re.findall(r"""(?:src|href)=["'](?!#)([^"']+)""", page)) | set(re.findall(r"url\((?!#)", page))
    assert outside == set()
    assert "<script" not in page
    assert "<svg" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {name for name in re.findall(r'href="#([^"]+)"', page)} <= set(ids)
    assert "<b>" not in as_html(make_dossier([subject({".name": "<b>x"})], MADE), [subject({".name": "<b>x"})])


def test_the_json_is_what_the_committed_schema_says() -> None:
    known = json.loads(SCHEMA.read_text())
    assert known == schema(), "python -c 'from medx.dossier.record import *' writes it anew, on purpose"
    Draft202012Validator.check_schema(known)
    validator = Draft202012Validator(known)
    for run in (subject(RICH), subject({"view": "released"})):
        content = json.loads(as_json(make_dossier([run], MADE)))
        validator.validate(content)
    del content["runs"][0]["answer"][2]
    with pytest.raises(ValidationError):
        validator.validate(content)
    content = json.loads(as_json(make_dossier([subject()], MADE))) | {"more": 1}
    with pytest.raises(ValidationError):
        validator.validate(content)


def test_counts_and_rates_are_the_results_own() -> None:
    (point,) = operating_points(result())
    assert (point.true_positive, point.false_negative, point.false_positive, point.true_negative) == (18, 2, 4, 36)
    assert point.sensitivity == result().test["sensitivity_at_threshold"]
    assert point.specificity == result().test["specificity_at_threshold"]
    assert point.ppv.value == 18 / 22
    assert point.npv.value == 36 / 38
    assert point.prevalence == pytest.approx(1 / 3)
    assert point.ppv_at(point.prevalence) == pytest.approx(point.ppv.value)
    assert point.ppv_at(0.05) == pytest.approx(0.9 * 0.05 / (0.9 * 0.05 + 0.1 * 0.95))
    other = subject({"test.sensitivity_at_threshold": Interval(value=0.913)}).result
    assert operating_points(other) == [], "no whole number of 20 images: of other ones"
    sure = subject({"test.sensitivity_at_threshold": Interval(value=1.0, low=1.0, high=1.0)}).result
    assert operating_points(sure)[0].sensitivity == wilson(20, 20), "all of 20 is no certainty"


def test_wilsons_interval_by_its_own_formula() -> None:
    z, hits, total = 1.959963984540054, 18, 22
    share = hits / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    found = wilson(hits, total)
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert wilson(0, 0).value is None


def test_of_several_classes_each_is_told_from_the_others() -> None:
    changes = {"dataset.task": "multiclass", "dataset.class_names": ["a", "b", "c"], "threshold": None,
               "curves": CurveData(confusion_matrix=[[9, 1, 0], [2, 8, 0], [3, 2, 0]])}  # fmt: skip
    points = operating_points(subject(changes).result)
    assert [each.true_positive for each in points] == [9, 8, 0]
    assert [each.false_positive for each in points] == [5, 3, 0]
    assert [each.false_negative for each in points] == [1, 2, 5]
    assert [each.true_negative for each in points] == [10, 12, 20]
    assert points[2].ppv.value is None


def test_a_real_runs_figures_and_ledgers(ran: Ran, tmp_path: Path) -> None:
    main([str(ran.folder), "--json", str(tmp_path / "d.json"), "--html", str(tmp_path / "d.html")])
    content = json.loads((tmp_path / "d.json").read_text())
    (run,) = content["runs"]
    chapters = {each["key"]: each for each in run["chapters"]}
    tables = {table["name"]: table for chapter in chapters.values() for table in chapter["tables"]}
    (row,) = tables["operating_point"]["records"]
    test, counts = ran.result.test, ran.result.dataset.class_counts["test"]
    assert row["true_positive"] == pytest.approx((test["sensitivity_at_threshold"].value or 0) * counts[1])
    right = (row["true_positive"] + row["true_negative"]) / sum(counts)
    assert right == pytest.approx(test["accuracy_at_threshold"].value)
    assert tables["overall"]["records"][0]["auc"] == pytest.approx(test["auc"].value)
    sites = tables["sites"]["records"]
    assert [each["ledger_steps"] for each in sites] == [each.steps for each in ran.result.privacy.clients]
    assert "sites.agrees" in [each["key"] for each in chapters["sites"]["sentences"]]
    assert [each["key"] for each in run["first"]] == ["first.synthetic", "first.seeded"]
    page = words((tmp_path / "d.html").read_text())
    assert page.index("OWNER'S VIEW") < page.index("A model (cnn")


def test_a_folder_of_another_machine_is_read_without_a_network_and_left_as_it_is(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sent"
    shutil.copytree(ran.folder, folder)
    text = (folder / "result.json").read_text().replace(str(ran.folder), "/elsewhere/run")
    (folder / "result.json").write_text(text)

    def refuse(*given: object) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    main([str(folder), "--markdown", "-"])
    assert "The ledgers of 3 hospitals have as many" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_released_view_has_nothing_of_the_owners(ran: Ran, tmp_path: Path) -> None:
    names = ("d.html", "d.md", "d.json")
    files = [part for name, kind in zip(names, ("html", "markdown", "json"), strict=True)
             for part in (f"--{kind}", str(tmp_path / name))]  # fmt: skip
    main([str(ran.folder), "--released", *files])
    whole = ran.result
    assert whole.config_hash is not None
    assert whole.dataset.content_hash is not None
    auc = whole.test["auc"].value
    assert auc is not None
    (run,) = read([str(ran.folder)], released=False)
    secrets = [whole.config_hash, whole.dataset.content_hash, f"{auc:.3f} [", run.digests["result.json"],
               run.digests["config.json"]]  # fmt: skip
    for name in names:
        text = (tmp_path / name).read_text()
        for secret in secrets:
            assert secret not in text, (name, secret)
        assert "RELEASED VIEW" in text or name == "d.json"
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["view"] == content["runs"][0]["view"] == "released"
    tables = {table["name"] for chapter in content["runs"][0]["chapters"] for table in chapter["tables"]}
    assert tables == {"images", "hospitals", "bounds", "observers", "digests", "versions", "sites"}
    # The run's own released.json gives the same words.
    main([str(ran.folder / "released.json"), "--json", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    said = [[each["sentences"] for each in one["runs"][0]["chapters"]] for one in (content, again)]
    assert said[0] == said[1]
    assert content["runs"][0]["answer"] == again["runs"][0]["answer"]


def test_receipts_beside_a_coordinators_run_are_checked_by_the_consortiums_keys(tmp_path: Path) -> None:
    coordinator, north = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    node = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    keys = [key.public_key().public_bytes_raw().hex() for key in (coordinator, north)]
    member = Member(name="north", identity=keys[1], node=node.decode())
    Consortium(name="lungs", host="localhost", coordinator=keys[0], hospitals=(member,), expires="2031-01-01").save(  # type: ignore[arg-type]
        tmp_path, coordinator
    )
    folder = tmp_path / "runs" / "abcd"
    folder.mkdir(parents=True)
    made = subject({"config.runtime": "deployment", "privacy.clients": result().privacy.clients[:1]}).result
    made.save(folder / "result.json")
    said = {"study": "0" * 64, "hospital": "north", "steps": 6, "epsilon": 4.9}
    receipt = {"receipt": said, "signature": north.sign(canonical("receipt", said)).hex()}
    (folder / "receipts.json").write_text(json.dumps([receipt]))
    (run,) = read([str(folder)], released=False)
    assert [each.signed for each in run.receipts] == [True]
    assert "1 of 1 hospitals gave a receipt" in as_markdown(make_dossier([run], MADE))
    assert "| 0 north |" in as_markdown(make_dossier([run], MADE))
    said["steps"] = 5
    (folder / "receipts.json").write_text(json.dumps([receipt | {"receipt": said}]))
    (run,) = read([str(folder)], released=False)
    assert [each.signed for each in run.receipts] == [False]
    assert "SIGNATURE DOES NOT HOLD: north" in as_markdown(make_dossier([run], MADE))
    assert read([str(folder)], released=True)[0].receipts == ()
    (tmp_path / "consortium.json").unlink()
    assert [each.signed for each in read([str(folder)], released=False)[0].receipts] == [None]


def test_this_runs_row_is_the_threat_models() -> None:
    text = (DOCS / "threat_model.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(plain|secure)`(?: \([^|]*\))? \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    found: dict[tuple[str, bool], tuple[str, str]] = {}
    for mechanism, aggregation, server, others in rows:
        before = found.get((mechanism, False))
        told = before[1] if others == "the same as above" and before is not None else others
        found[mechanism, aggregation == "secure"] = (re.sub("[`*]", "", server), re.sub("[`*]", "", told))
    assert found == ROWS


def test_the_documentation_names_the_standards_that_chapters_have() -> None:
    text = (DOCS / "dossier.md").read_text()
    rows = re.findall(r"^\|[^|]+\|[^|]+\|([^|]*)\|([^|]*)\|([^|]*)\|$", text, re.MULTILINE)[2:]
    found = [[part.strip().split(", ") if part.strip() else [] for part in row] for row in rows]
    told = [each.standards for each in KINDS]
    assert found == [[each.model_card, each.tripod_ai, each.nist_sp_800_226] for each in told]


def test_one_seed_is_one_seed_among_several(tmp_path: Path) -> None:
    for seed in (1, 2):
        made = subject({"seed": seed, "config": CONFIG | {"seed": seed}}).result
        made.save(tmp_path / f"{seed}.json")
    paths = [str(tmp_path / f"{seed}.json") for seed in (1, 2)]
    assert [each.seeds for each in read(paths, released=False)] == [2, 2]
    assert [each.seeds for each in read(paths[:1] * 2, released=False)] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "nowhere: cannot be read"),
        (["{run}", "--html", "nowhere/d.html"], "--html=nowhere/d.html: there is no such folder; accepted"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused_in_one_line(
    ran: Ran, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([part.format(run=ran.folder) for part in arguments])
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1
