"""Committed tables are the ones that their results.csv gives, and what the README says to type can be typed."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from medx.configuration import plain, typed
from medx.dataset import InputSpec, Task
from medx.model.export import describe, load_model, save_model
from medx.model.objectives import objective_for
from medx.report.page import BEGIN, END, publish, with_results
from medx.report.study import STUDIES
from medx.schema import CONF, CheckpointError, MedxError
from tests.report.examples import GOLDEN, STUDY, load_runs, tiny_report

RESULTS = STUDIES / "reference_report" / "results.csv"
README = STUDIES.parent / "README.md"


@pytest.mark.parametrize(("path", "short"), [(README, True), (STUDIES / "reference_report" / "README.md", False)])
def test_the_committed_table_is_the_results(path: Path, short: bool) -> None:
    text = path.read_text()
    assert with_results(text, RESULTS, path.name, short=short) == text, "python -m medx.report --publish"


def table_of(results: Path, *, short: bool) -> list[str]:
    return with_results(f"{BEGIN}\n{END}", results, "README.md", short=short).splitlines()[1:-1]


def test_the_front_page_has_rows_of_the_full_table_and_reaches_them_soon() -> None:
    full, short = (table_of(RESULTS, short=short) for short in (False, True))
    assert set(short) < set(full)
    assert len(short) <= 24
    for word in ("always the majority", "| local_dp | 0.998", "| none | none", "| distributed_dp | 9.980", "privately"):
        assert sum(word in line for line in short) == 3, "of all data sets; chosen privately by two validation splits"
    assert README.read_text().split("\n| ")[0].count("\n") < 50, "one screen, and there is a table"


def commands() -> list[list[str]]:
    """Overrides of every ``python -m medx.run`` of the README, and those that its table adds to one."""
    text = README.read_text()
    typed = re.findall(r"python -m medx\.run ([^`\n]*=[^`\n]*)", text)
    typed += re.findall(r"\| `(dataset=[^`\n]+)`", text)
    return [[re.sub(r",.*", "", word) for word in words.split() if word != "-m"] for words in typed]


def test_what_the_readme_says_to_type_composes() -> None:
    found = commands()
    assert ["dataset=retinamnist", "model.num_components=200", "trainer.learning_rate_noise=0.03"] in found
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for words in found:
            typed(plain(compose("config", [word for word in words if not word.endswith("=FOLDER")])))


def test_the_readme_s_own_model_fits_every_task_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    mine = ModuleType("medx.model.mine")
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    monkeypatch.setattr("medx.model.mine", mine, raising=False)
    exec(code, mine.__dict__)
    model = mine.Mine(width=4)
    for task, classes, outputs in (("binary", 2, 1), ("multiclass", 3, 3), ("ordinal", 4, 3)):
        spec = InputSpec(num_channels=3, image_size=8, num_classes=classes, task=cast(Task, task))
        assert objective_for(spec).num_outputs == outputs
        head = model.build(spec, seed=0)
        images = torch.rand(2, 3, 8, 8)
        assert head(images).shape == (2, outputs)
        save_model(tmp_path / task, describe(model, spec, [0.5] * 3, [0.5] * 3), None, head)
        for path in (tmp_path / task, str(tmp_path / task)):
            assert torch.equal(load_model(path, mine.Mine)(images), head(images))
    with pytest.raises(CheckpointError, match="model/mine: no component of this version"):
        load_model(tmp_path / "ordinal")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: medx.model.mine.Mine\nwidth: 4\n")
    monkeypatch.setattr("medx.schema.CONF", tmp_path / "conf")
    assert torch.equal(load_model(tmp_path / "ordinal")(images), head(images))


def test_a_table_that_differs_is_seen_and_mended(tmp_path: Path) -> None:
    old = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    text = with_results(old, GOLDEN / "results.csv", "README.md", short=True)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert (
        "| pneumoniamnist | scatternet | local_dp | 9.900 | – | 0.955 ± 0.007 | 89.5 ± 0.7 % | 87.5 ± 0.7 % | 2 |"
        in text
    )
    assert "| retinamnist | always the majority class | - | 0 | 0 | 0.500 | 45.0 % | 33.3 % | - |" in text
    assert "| pneumoniamnist | scatternet | none | none | none | 0.985 |" in text
    assert with_results(text, GOLDEN / "results.csv", "README.md", short=True) == text
    csv = tmp_path / "results.csv"
    csv.write_text((GOLDEN / "results.csv").read_text().replace("0.96,", "0.94,"))
    assert with_results(text, csv, "README.md", short=True) != text, "one figure changed"


def test_publishing_writes_the_study_and_of_the_reference_the_front_page(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    report = tiny_report(load_runs())
    publish(report, tmp_path / "tiny", readme)
    assert readme.read_text() == f"{BEGIN}\n{END}\n", "of another study"
    study = STUDY.model_copy(update={"name": "reference_report"})
    publish(replace(report, study=study), tmp_path / "reference", readme)
    written = tmp_path / "reference" / "results.csv"
    assert written.read_text() == (GOLDEN / "results.csv").read_text()
    assert readme.read_text().splitlines()[1:-1] == table_of(written, short=True)
    assert "\n".join(table_of(written, short=False)) in (tmp_path / "reference" / "README.md").read_text()


def test_comments_must_be_there_once() -> None:
    for text in ("nothing", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(MedxError, match="results:begin"):
            with_results(text, RESULTS, "README.md")
