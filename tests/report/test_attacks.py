"""The report's section on attacks: what they found beside what is claimed, and studies of attacks in folders."""

import json
import re
from pathlib import Path

import pytest

from medx.attacks.evidence import gaussian_epsilon
from medx.attacks.membership import STUDY_FILE, MembershipStudy
from medx.attacks.sought import RECONSTRUCTION_FILE, Reconstruction
from medx.figures import Kept
from medx.membership import markdown, rows, rows_by_hospital
from medx.privacy.meaning import meanings_of
from medx.report.attack_studies import read_all
from medx.report.page import Report, build_report, render, write_report
from medx.report.rows import Run
from medx.report.section import Section
from medx.report.study import STUDIES, load_study
from medx.results import ExperimentResult, NoiseMeasured
from medx.schema import ConfigError
from tests.report.examples import STUDY, attacked, make_result

MEMBERSHIP, RECONSTRUCTION = STUDIES / "membership", STUDIES / "reconstruction"


def report_of(*results: ExperimentResult, attacks: tuple[Path, ...] = (), draw: bool = False) -> Report:
    runs = [Run(number, "", ("utility",), result) for number, result in enumerate(results, start=1)]
    return build_report(STUDY.model_copy(update={"attacks": list(attacks)}), "make report", runs, [], draw=draw)


def section_of(report: Report) -> Section:
    (section,) = [section for section in report.sections if section.key == "attacks"]
    return section


def test_where_nothing_was_attacked_one_sentence_says_so_and_how_it_would_be() -> None:
    report = report_of(make_result("pneumoniamnist", 10.0, 0, 0.9))
    section = section_of(report)
    (sentence,) = section.words
    assert (section.tables, section.points) == ([], [])
    assert "Nothing was attacked" in sentence
    assert "<code>attack=standard</code>" in render(report, "index.html.j2")


def test_each_observer_has_the_highest_bound_of_any_seed_beside_the_claim_and_its_meaning() -> None:
    first, second = (make_result("pneumoniamnist", 10.0, seed, 0.9) for seed in (0, 1))
    low, high = attacked(first, found=4.0), attacked(second, found=8.5, shift=1.9, error=0.05)
    report = report_of(low, high, attacked(make_result("pneumoniamnist", None, 0, 0.9)), draw=True)
    section = section_of(report)
    (found,) = section.tables
    rows = [dict(zip(found.header, row, strict=True)) for row in found.rows]
    assert [row["observer"] for row in rows] == ["server", "whoever gets the model"] * 2
    assert [row["runs"] for row in rows] == ["1-2", "1-2", "3", "3"]
    server, public = high.attacks
    assert (rows[0]["claimed ε"], rows[0]["lower bound found"]) == ("9.90", "8.50")
    assert public.planned is not None
    assert rows[1]["as planned"] == f"{gaussian_epsilon(public.planned, 1e-5):.2f}"
    assert rows[0]["by guesses alone"] == "2.97 of 3.76"
    allowed = meanings_of(high.privacy)["image"].detected["0.01"]
    assert rows[0]["found at 1 %: allowed"] == "≤ 36.7 %", "upwards"
    assert found.data["true_at_1_found"][0] == pytest.approx(0.3056, abs=1e-4)  # of a shift of 1.9 - 1.645 * 0.05
    assert found.data["true_at_1_found"][0] < allowed
    assert [rows[2][name] for name in ("claimed ε", "lower bound found", "as planned")] == ["none", "any", "–"]
    (picture,) = section.pictures
    marks = [line.get_xdata()[-1] for line in picture.figure.axes[0].get_lines()]  # type: ignore[union-attr, index]
    assert {server.claimed, server.found} <= set(marks)
    text = render(report, "report.md.j2")
    assert "verified" not in text.lower()
    assert "95 % confidence" in found.note
    assert any("membership" in point for point in section.points)


def test_settings_that_were_not_attacked_are_named() -> None:
    some = make_result("pneumoniamnist", 10.0, 0, 0.9, mode="distributed_dp")
    points = section_of(report_of(attacked(make_result("pneumoniamnist", 10.0, 0, 0.9)), some)).points
    assert points[0] == "Not tried: canaries in runs of scatternet with distributed_dp (`attack=standard`)."


def test_what_speaks_against_a_claim_stands_on_top_of_the_page() -> None:
    result = make_result("pneumoniamnist", 10.0, 0, 0.9)
    fine = {"values": 100, "tail": 0.1, "coordinates": 0.1, "rounds": None, "hospitals": None}
    well, ill = (NoiseMeasured(size=1.0, doubts=[], **fine), NoiseMeasured(size=0.5, doubts=["its size is"], **fine))  # type: ignore[arg-type]
    noised = [
        result.model_copy(update={"privacy": result.privacy.model_copy(update={"noise": n})}) for n in (well, ill)
    ]
    beyond = attacked(noised[1], against=["more was found than is claimed, and not by chance"])
    assert report_of(attacked(noised[0])).gaps == []
    (both,) = section_of(report_of(attacked(result, found=9.0), beyond)).tables
    assert both.data["against"].tolist() == ["more was found than is claimed, and not by chance"] * 2, (
        "of whichever run"
    )
    assert "chance explains all of it" in " ".join(section_of(report_of(attacked(noised[0]))).words)
    gaps = report_of(beyond).gaps
    assert gaps[0] == "run 1: NOISE NOT AS PLANNED: its size is"
    assert gaps[1] == "run 1: AGAINST THE CLAIM: server: more was found than is claimed, and not by chance"
    assert "chance explains all of it" not in " ".join(section_of(report_of(beyond)).words)


def test_the_reference_study_shows_what_is_committed_and_its_readmes_say_the_same() -> None:
    study = load_study("reference_report")
    runs = [Run(1, "", ("utility",), make_result("pneumoniamnist", 10.0, 0, 0.9))]
    section = section_of(build_report(study, "make report", runs, [], draw=True))
    names = ["membership", "membership_2", "reconstruction", "reconstruction_sums"]
    assert [each.name for each in section.tables] == names
    names = ["membership_lira", "membership_2_lira", "reconstruction_psnr"]
    assert [each.name for each in section.pictures] == names, "no image of a patient is committed"
    text = (MEMBERSHIP / "README.md").read_text()
    for folder in (MEMBERSHIP, MEMBERSHIP / "few_records"):
        found = MembershipStudy.model_validate_json((folder / STUDY_FILE).read_bytes()).settings
        assert markdown(rows(found)) in text
        assert folder != MEMBERSHIP or markdown(rows_by_hospital(found)) in text
    text = (RECONSTRUCTION / "README.md").read_text()
    kept = Reconstruction.model_validate_json((RECONSTRUCTION / RECONSTRUCTION_FILE).read_bytes())
    told = re.findall(r"\| ([\d.]+), ([\d.]+) \| ([\d.]+), ([\d.]+) \|", text)
    single = [each for each in kept.images if each.records == 1]
    for index, pixels in enumerate((28, 64)):
        own = [(f"{each.psnr:.1f}", f"{each.ssim:.2f}".removeprefix("0")) for each in single if each.pixels == pixels]
        assert [row[2 * index : 2 * index + 2] for row in told] == own


def test_images_are_shown_where_they_lie_beside_the_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    (folder / RECONSTRUCTION_FILE).write_bytes((RECONSTRUCTION / RECONSTRUCTION_FILE).read_bytes())
    for ending in ("png", "svg"):
        (folder / f"reconstruction.{ending}").write_bytes(b"a picture")
    report = report_of(make_result("pneumoniamnist", 10.0, 0, 0.9), attacks=(folder,), draw=True)
    section = section_of(report)
    images, drawn = section.pictures
    assert isinstance(images, Kept)
    assert not any("experiments.reconstruction" in point for point in section.points)
    page = write_report(report, tmp_path / "report").read_text()
    assert 'src="data:image/png;base64,YSBwaWN0dXJl"' in page
    assert (tmp_path / "report" / "figures" / "reconstruction.png").read_bytes() == b"a picture"
    assert (tmp_path / "report" / "figures" / f"{drawn.name}.svg").exists()


def test_a_folder_without_attacks_and_a_file_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"attacks={tmp_path}: has no membership.json and no reconstruction.json"):
        read_all([tmp_path])
    (tmp_path / STUDY_FILE).write_text(json.dumps({"title": "t"}))
    with pytest.raises(ConfigError, match=r"membership.json: settings: Field required"):
        read_all([tmp_path])
    with pytest.raises(ConfigError, match="Field required"):
        report_of(make_result("pneumoniamnist", 10.0, 0, 0.9), attacks=(tmp_path,))
