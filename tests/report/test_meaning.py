"""The report's section on what its epsilons leave possible."""

from dataclasses import replace

import numpy as np
import pytest

from medx.privacy.accountants import gaussian_mu
from medx.report.meaning import meaning_figure, meaning_table, meanings_by_run
from medx.report.rows import Run, make_frame
from medx.schema import MedxError
from tests.report.examples import make_result


def runs_of(*epsilons: float | None, patients: bool) -> list[Run]:
    runs = []
    for number, epsilon in enumerate(epsilons, start=1):
        result = make_result("pneumoniamnist", epsilon, number, 0.9)
        privacy = result.privacy
        if patients and privacy.epsilon is not None:
            by_unit = {"image": privacy.epsilon, "patient": 3 * privacy.epsilon}
            privacy = privacy.model_copy(update={"epsilon_by_unit": by_unit})
        runs.append(Run(number, "", ("utility",), result.model_copy(update={"privacy": privacy})))
    return runs


@pytest.mark.parametrize("patients", [True, False])
def test_the_section_has_every_private_setting_and_a_patient_where_one_is_bounded(patients: bool) -> None:
    runs = runs_of(1.0, 1.0, 10.0, None, patients=patients)
    frame, results = make_frame(runs), {run.number: run.result for run in runs}
    found = meanings_by_run(frame, results)
    table = meaning_table(frame, found)
    assert list(table.data["runs"]) == ["1-2", "3"]
    cells = dict(zip(table.header, table.rows[1], strict=True))
    assert (cells["image: found at 1 %"], cells["image: guessed, from 10 %"]) == ("36.7 %", "75.9 %")
    assert ("patient: advantage" in cells) == patients == ("A patient is all images" in table.note)
    assert ("A patient is not bounded" in table.note) != patients
    (picture,) = meaning_figure(frame, found)
    (axes,) = picture.figure.axes
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert ("patient, target ε 10" in lines) == patients
    assert len(lines) == 4 + 2 * patients
    strict, loose = (np.asarray(lines[f"image, target ε {target}"]) for target in (1, 10))
    assert (strict[:-1, 1] < loose[:-1, 1]).all()
    assert (strict[:-1, 1] > strict[:-1, 0]).all()


def test_a_row_has_the_largest_figure_of_any_seed_and_a_result_that_contradicts_itself_is_named() -> None:
    first, second = runs_of(10.0, 10.0, patients=False)
    privacy = second.result.privacy
    sigma = 6**0.5 / gaussian_mu(11.0, 1e-5)
    worse = privacy.model_copy(
        update={"epsilon": 11.0, "clients": [privacy.clients[0].model_copy(update={"noise_multiplier": sigma})]}
    )
    runs = [first, replace(second, result=second.result.model_copy(update={"privacy": worse}))]
    frame, results = make_frame(runs), {run.number: run.result for run in runs}
    found = meanings_by_run(frame, results)
    assert meaning_table(frame, found).data["image_detected_at_0.01"][0] == found[2]["image"].detected["0.01"]
    assert found[2]["image"].detected["0.01"] > found[1]["image"].detected["0.01"]
    lies = worse.model_copy(update={"epsilon": 9.9})
    broken = results | {2: second.result.model_copy(update={"privacy": lies})}
    with pytest.raises(MedxError, match="run 2: the events of its clients give epsilon 11"):
        meanings_by_run(frame, broken)
