"""What cannot run is refused in one line, exit code 2, with nothing trained and nothing written."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import medx.model.cnn
from medx.hints import elsewhere
from medx.trainer.gradients import MODES, Naive
from tests.program import MODEL, TINY, WORK, call, call_plainly

CONFIGURATIONS = [
    # 1: epsilon
    ("privacy.epsilon=0", r"privacy\.epsilon=0: accepted: 0\.001 to 100$"),
    ("privacy=central_dp privacy.epsilon=1e-4", r"privacy\.epsilon=0\.0001: accepted: 0\.001 to 100$"),
    ("privacy.epsilon=1000", r"privacy\.epsilon=1000: accepted: 0\.001 to 100$"),
    ("privacy.epsilon=nan", r"privacy\.epsilon=nan: .*finite"),
    ("privacy.epsilon=inf", r"privacy\.epsilon=inf: .*finite"),
    ("privacy.epsilon=much", r"privacy\.epsilon='much': .*number"),
    # 2: delta
    ("privacy.delta=0", r"privacy\.delta=0: accepted: 1e-14 to 0\.5$"),
    ("privacy=central_dp privacy.delta=1e-15", r"privacy\.delta=1e-15: accepted: 1e-14 to 0\.5$"),
    ("privacy.delta=0.02", r"delta=0\.02: must be below 1/N = 0\.00667 of the federation"),
    # 3: clip norm, sampling probability
    ("privacy.clip_norm=0", r"privacy\.clip_norm=0: accepted: 1e-15 to 1e\+15$"),
    ("privacy.clip_norm=1e30", r"privacy\.clip_norm=1e\+30: accepted: 1e-15 to 1e\+15$"),
    ("trainer.expected_batch_size=null trainer.sampling_probability=1.01", r"sampling_probability=1\.01: .*equal to 1"),
    ("trainer.expected_batch_size=null trainer.sampling_probability=0", r"sampling_probability=0: .*greater than 0"),
    # 5: unknown names
    ("privacy.epsilno=3", r"privacy\.epsilno is unknown; did you mean privacy\.epsilon"),
    ("+privacy.epsilno=3", r"privacy\.epsilno is unknown; did you mean epsilon"),
    ("modle=cnn", r"modle is unknown; did you mean model"),
    ("model=cnnn", r"model=cnnn is unknown; did you mean cnn"),
    ("model=null", r"model=null is unknown; accepted: cnn, ensemble, pretrained, resnet18, scatternet"),
    ("privacy=dirichlet", r"privacy=dirichlet is unknown \(there is partition=dirichlet\); accepted: .*local_dp"),
    ("privacy=none privacy.epsilon=1", r"epsilon has no meaning with privacy=none; it needs privacy=central_dp, "),
    (
        "partition.alpha=.1",
        r"alpha has no meaning with partition=iid; it needs partition=dirichlet, partition=quantity",
    ),
    (
        "experiment=demo",
        r"phantom_start has no meaning with model=cnn; it needs .*model=pretrained, model=scatternet; accepted",
    ),
    ("dataset.md5=null", r"dataset\.md5 has no meaning with dataset=phantom; it needs"),
    ("select=recall_2", r"select=recall_2: no such metric; accepted: .*recall_1"),
    ("model.num_groups=three", r"model\.num_groups='three': .*integer"),
    ("federation.num_clients=2.5", r"federation\.num_clients=2\.5: .*integer"),
    ("model._target_=os.system", r"model\._target_=os\.system: no class"),
    ("privacy.epsilon=1,5", r"privacy\.epsilon=1,5: several values; add -m"),
    ("baseline=alone", r"baseline\.0='alone': .*'local_only', 'centralized' or 'phantoms_alone'"),
    ("+nonsense=1", r"nonsense is unknown"),
    # what is no override
    ("--epsilon=3", r"unrecognized arguments: --epsilon=3; accepted: key=value, -m for a sweep"),
    ("privacy.epsilon==3", r"privacy\.epsilon==3: not an override; accepted: key=value"),
    ("privacy.epsilon 3", r"privacy\.epsilon: not an override; accepted: key=value"),
    ("study='", r"study=': not an override; accepted: key=value"),
    ("~privacy", r"~privacy: every run needs this group; accepted: central_dp, "),
    ("privacy=", r"privacy= is unknown; accepted: central_dp, "),
    ("federation=[fedavg,krum]", r"federation=\[fedavg,krum\]: a group takes one option"),
    ("~dataset", r"dataset=None: .*accepted|unknown"),
    # 27: device
    ("device=gpu", r"device=gpu is unknown; accepted: auto, cpu, cuda"),
    # what goes together
    ("federation.min_clients=4", r"min_clients=4 is more than federation\.num_clients=3"),
    ("baseline=local_only privacy.ledger=/tmp/none", r"baseline=local_only: .*accepted: baseline=null"),
    ("resume=/nowhere", r"resume=/nowhere: no config\.json"),
]


@pytest.mark.parametrize(("overrides", "message"), CONFIGURATIONS)
def test_configuration_is_refused(overrides: str, message: str, tmp_path: Path) -> None:
    base = tuple(part for part in TINY if not (overrides.startswith("model=") and part.startswith("model.")))
    base = base if overrides != "~dataset" else (*MODEL, *WORK)
    ran = call(tmp_path, *overrides.split(), base=base)
    assert re.search(message, ran.refusal), ran.refusal
    assert all(line.startswith(("preparing: ", "accounting: ")) for line in ran.out.splitlines())


@pytest.mark.parametrize("setting", ["hydra.run.dir", "hydra.sweep.dir"])
@pytest.mark.parametrize(
    ("path", "said"),
    [("/proc/x/y", "No such file or directory"), ("/dev/null/x", "Not a directory"), ("/tmp/" + 300 * "x", "too long")],
)
def test_a_place_that_cannot_be(setting: str, path: str, said: str, tmp_path: Path) -> None:
    more = ("seed=0,1", "-m") if "sweep" in setting else ()
    ran = call(tmp_path, f"{setting}={path}", "jobs=1", *more)
    assert re.fullmatch(rf"medx: /(proc|dev|tmp)/.*: .*{said}", ran.refusal)


def test_a_name_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "K\ufffdln: this name is not UTF-8; accepted" in call(tmp_path, "study=K\udcf6ln").refusal
    monkeypatch.setattr("os.getcwd", lambda: "/home/K\udcf6ln")
    assert "/home/K\ufffdln: this name is not UTF-8; accepted" in call(tmp_path).refusal


def test_cuda_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA device is there; accepted here: auto, cpu" in call(tmp_path, "device=cuda:0").refusal


def images(folder: Path, **changes: np.ndarray) -> Path:
    """A pneumoniamnist.npz of 60 drawn images."""
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 2, (count, 1), dtype=np.uint8)
    path = folder / "pneumoniamnist.npz"
    np.savez(path, **(arrays | changes))
    return path


def refusal_of_file(tmp_path: Path, path: Path, *, accept: bool) -> str:
    md5 = hashlib.md5(path.read_bytes()).hexdigest() if accept else "null"
    before = path.read_bytes()
    base = (*MODEL, *WORK, "tracking=none", "device=cpu")
    overrides = ("dataset=pneumoniamnist", f"dataset.root={path.parent}", "dataset.download=false")
    ran = call(tmp_path / "run", *overrides, f"dataset.md5={md5}", base=base)
    assert path.read_bytes() == before
    return ran.refusal


def test_data_that_is_missing(tmp_path: Path) -> None:
    base = (*MODEL, *WORK, "tracking=none")
    ran = call(
        tmp_path / "run", "dataset=pneumoniamnist", f"dataset.root={tmp_path}", "dataset.download=false", base=base
    )
    assert "pneumoniamnist.npz" in ran.refusal
    assert str(tmp_path) in ran.refusal
    assert "dataset=phantom needs no file" in ran.refusal


def test_file_that_is_cut_off_or_no_zip(tmp_path: Path) -> None:
    path = images(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "pneumoniamnist.npz" in refusal_of_file(tmp_path, path, accept=True)
    path.write_text("no zip at all")
    assert "pneumoniamnist.npz" in refusal_of_file(tmp_path, path, accept=True)


def test_wrong_checksum_tells_both_sums_and_how_to_accept(tmp_path: Path) -> None:
    path = images(tmp_path)
    line = refusal_of_file(tmp_path, path, accept=False)
    assert hashlib.md5(path.read_bytes()).hexdigest() in line
    assert "28209eda62fecd6e6a2d98b1501bb15f" in line  # the official one
    assert "dataset.md5=" in line


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('unpickled')",)

    path = images(tmp_path, train_labels=np.array([[Bomb()]] * 40, dtype=object))
    assert "train_labels" in refusal_of_file(tmp_path, path, accept=True)


def test_label_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    labels = np.zeros((40, 1), dtype=np.uint8)
    labels[17] = 2
    line = refusal_of_file(tmp_path, images(tmp_path, train_labels=labels), accept=True)
    assert "train_labels" in line
    assert "17" in line


def test_batchnorm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: object, spec: object, seed: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 26 * 26, 1))

    monkeypatch.setattr(medx.model.cnn.Cnn, "build", build)
    for privacy in ("local_dp", "none"):
        assert "1 (BatchNorm2d) mixes the records" in call(tmp_path / privacy, "seed=9", f"privacy={privacy}").refusal


def test_outputs_that_do_not_fit_the_task_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medx.model.cnn.Cnn, "build", lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(784, 2)))
    assert "model: gives [4, 2] for 4 images; accepted: [4, 1]" in call(tmp_path, "seed=9", "privacy=none").refusal


def test_a_ledger_that_cannot_be_there_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = call(tmp_path / "run", f"privacy.ledger={tmp_path / 'file' / 'ledger'}").refusal
    assert "file/ledger: Not a directory; accepted: a folder in which this user may write" in said


def test_loss_that_couples_records_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Centred(nn.Module):
        def forward(self, inputs):  # type: ignore[no-untyped-def]
            return inputs - inputs.mean(0)

    def build(self: object, spec: object, seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), Centred(), nn.Linear(784, 1))

    monkeypatch.setattr(medx.model.cnn.Cnn, "build", build)
    assert "1 (Centred): its output for one record depends on the other" in call(tmp_path, "seed=9").refusal


def test_budget_that_an_earlier_run_spent(tmp_path: Path) -> None:
    shared = (f"privacy.ledger={tmp_path / 'ledger'}", "privacy.budget=12")
    assert call(tmp_path / "first", *shared).code == 0
    second = call(tmp_path / "second", *shared, "seed=1")
    assert second.code == 2
    assert "budget=12" in second.err
    assert len(second.err.splitlines()) == 1
    assert not (second.folder / "result.json").exists()
    assert "round 1/2" not in second.out


def test_a_refused_run_gives_back_what_it_reserved(tmp_path: Path) -> None:
    # Hospital 2 alone spent its budget elsewhere. Hospitals 0 and 1, who did reserve, must not pay for a run that
    # never began: with the budget of one run and a half left they can still take part in the next.
    ledger = tmp_path / "ledger"
    shared = (f"privacy.ledger={ledger}", "privacy.budget=12")
    assert call(tmp_path / "first", *shared).code == 0
    for client in (0, 1):
        for path in ledger.glob(f"client_{client:04d}*"):
            path.unlink()
    assert "budget=12" in call(tmp_path / "second", *shared, "seed=1").err
    for path in ledger.glob("client_0002*"):
        path.unlink()
    assert call(tmp_path / "third", *shared, "seed=2").code == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file/run: Not a directory" in call(tmp_path / "file" / "run").refusal


def test_argument_that_is_no_override() -> None:
    ran = call_plainly(Path("."), "privacy.epsilon")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1


def test_a_wrong_gradient_is_refused_before_anything_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubled(Naive):
        def clipped_sum(self, *given: Any) -> list[torch.Tensor]:
            return [2 * total for total in super().clipped_sum(*given)]

    monkeypatch.setitem(MODES, "naive", Doubled)
    ran = call(tmp_path / "run", "trainer.gradient_mode=naive", f"privacy.ledger={tmp_path / 'ledger'}")
    assert "no right gradient per record" in ran.refusal
    assert not (tmp_path / "ledger").exists()


def test_a_sweep_over_a_group_says_how_a_key_of_its_options_is_written() -> None:
    """Hydra composes it with the group's default first, and refuses the key for that."""
    said = elsewhere("personalisation.folds", "fine_tune")
    assert said is not None
    assert "in a sweep over personalisation accepted as ++personalisation.folds=VALUE" in said
