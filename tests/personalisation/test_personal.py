"""Personal models: what never leaves needs no noise, and nothing of that is in what is sent."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import medx.outcome
from medx import personal
from medx.api import composed
from medx.attacks.audit import audit
from medx.federation.checkpoint import load_checkpoint
from medx.federation.hospital import Hospital
from medx.federation.setup import build_module
from medx.model.export import load_model
from medx.personal import FILE, best_of, dealt_alike
from medx.personalisation.kept import Kept, hospital_folder, keep, kept_before
from medx.privacy.base import SampledGaussian
from medx.results import ExperimentResult
from medx.schema import ConfigError
from medx.trainer.local_training import ClientUpdate
from medx.trainer.state import ModelLayout, ModelState
from tests.audit import recompute
from tests.program import DATA, SCATTERNET, TINY, WORK, Ran, call

QUICK = ("personalisation.steps=4", "personalisation.folds=2")
SHORT = "import medx.personal, medx.run; medx.personal.STEPS_ALONE = 4; medx.run.main()"  # in another process
AFTERWARDS = ("fine_tune", "interpolate", "ditto")
KEPT = ("mr_mtl", "local_norm")
HEAD = (*DATA, *SCATTERNET, *WORK, "tracking=none", "device=cpu", "noise=seed")
FULL = (
    *("trainer.expected_batch_size=null", "trainer.local_steps=1"),
    *("trainer.momentum=0", "trainer.share_momentum=false"),
)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local-only model of 300 steps is what a person wants, and a minute of tests."""
    monkeypatch.setattr(personal, "STEPS_ALONE", 4)


@dataclass
class Sent:
    """One round of one hospital: what it was sent, where it began, and what it sent."""

    client: int
    number: int
    received: ModelState
    began: ModelState
    sent: ModelState
    hospital: Hospital


@contextmanager
def overheard(patch: pytest.MonkeyPatch) -> Iterator[list[Sent]]:
    """All that hospitals send while the block runs."""
    heard: list[Sent] = []
    train = Hospital.train

    def listening(self: Hospital, state: ModelState, number: int) -> ClientUpdate:
        own = self.own_before(number)
        began = state
        if own is not None:
            began = self.job.setup.personalisation.begin(state, own.state, self.site.own_names)
        update = train(self, state, number)
        heard.append(Sent(self.client, number, state, began, update.state, self))
        return update

    with patch.context() as inner:
        inner.setattr(Hospital, "train", listening)
        yield heard


def run(folder: Path, *overrides: str, base: tuple[str, ...] = TINY) -> Ran:
    ran = call(folder, *overrides, base=base)
    assert ran.code == 0, ran.err
    return ran


def hashes(heard: list[Sent]) -> dict[tuple[int, int], bytes]:
    return {(each.client, each.number): each.sent.hash() for each in heard}


def test_what_is_trained_afterwards_is_in_nothing_that_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the option hospitals send the same bytes, and the run's model is the same."""
    with overheard(monkeypatch) as plain:
        without = run(tmp_path / "none", base=HEAD)
    for option in AFTERWARDS:
        with overheard(monkeypatch) as heard:
            ran = run(tmp_path / option, f"personalisation={option}", *QUICK, base=HEAD)
        assert hashes(heard) == hashes(plain), option
        assert (ran.result.test, ran.result.privacy.clients) == (without.result.test, without.result.privacy.clients)
        assert [each.method for each in ran.result.personal] == [option] * 3
    with monkeypatch.context() as patch:
        patch.setattr(Hospital, "train", leaking)
        with overheard(patch) as faulty:
            run(tmp_path / "leaks", "personalisation=fine_tune", *QUICK, base=HEAD)
    assert hashes(faulty) != hashes(plain), "a leak is seen"


TRAIN = Hospital.train


def leaking(self: Hospital, state: ModelState, number: int) -> ClientUpdate:
    """The fault: a step on the hospital's own records without noise, on top of what it sends."""
    update = TRAIN(self, state, number)
    moved = update.state.parameters.copy()
    moved[: self.inputs.shape[1]] += self.inputs.mean(0).numpy()
    return replace(update, state=replace(update.state, parameters=moved))


@pytest.mark.parametrize("option", KEPT)
def test_all_that_goes_on_from_a_hospitals_own_carries_the_accounted_noise(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of what is sent, less the clipped sum from where it began, is N(0, z C), normalisation layers too."""
    with overheard(monkeypatch) as heard:
        run(tmp_path, f"personalisation={option}", *FULL, "federation.num_rounds=12", "privacy.epsilon=8")
    whole, norms = [], []
    for each in heard:
        noise, of_norms = noise_of(each)
        whole.append(noise)
        norms.append(noise[of_norms])
    assert any(each.began.hash() != each.received.hash() for each in heard), "own parameters were gone on from"
    for noise in (np.concatenate(whole), np.concatenate(norms)):
        assert stats.kstest(noise, "norm").pvalue > 1e-4
        for wrong in (0.9, 1.1):
            if len(noise) > 5000:
                assert stats.kstest(noise * wrong, "norm").pvalue < 1e-4, "a wrong scale is seen"
    layers = np.concatenate(norms)
    assert stats.kstest(layers * 0.0, "norm").pvalue < 1e-4, "a part without noise is seen"
    assert stats.kstest(layers * 0.7, "norm").pvalue < 1e-4


def noise_of(each: Sent) -> tuple[np.ndarray, np.ndarray]:
    """The noise of a round of one step, in planned standard deviations, and which of it is normalisation layers'."""
    hospital = each.hospital
    job, plan = hospital.job, hospital.plan
    assert isinstance(plan.step, SampledGaussian)
    trainer, module = job.setup.trainer, build_module(job.setup, job.declared.spec)
    sums = trainer.clipped_gradient(
        *(module, hospital.site.prepared.objective, hospital.inputs, hospital.labels),
        plan=plan,
        state=each.began,
        sample_generator=torch.Generator(),
        device=torch.device("cpu"),
    )
    rate, batch = trainer.rate_at(each.number - 1, plan), plan.expected_batch_size
    step = (each.began.parameters.astype(np.float64) - each.sent.parameters) / rate
    pull = job.setup.personalisation.pull * (each.began.parameters - each.received.parameters)
    flat = np.concatenate([part.detach().numpy().ravel() for part in sums])
    noise = ((step - pull) * batch - flat) / (plan.step.noise_multiplier * plan.step.clip_norm)
    names = frozenset(
        f"{name}.{part}" for name, layer in module.named_modules() for part in ("weight", "bias")
        if isinstance(layer, torch.nn.GroupNorm)
    )  # fmt: skip
    mask = np.concatenate([np.full(int(np.prod(shape)), name in names) for name, shape in job.layout.shapes])
    assert mask.any()
    return noise, mask


@pytest.mark.parametrize("option", KEPT)
def test_a_record_less_moves_the_sum_by_no_more_than_the_clip_norm(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a hospital's own model too, with a huge outlier, and over all that is trained."""
    with overheard(monkeypatch) as heard:
        run(tmp_path, f"personalisation={option}", *FULL)
    last = heard[-1]
    hospital, plan = last.hospital, last.hospital.plan
    assert plan.step is not None
    inputs = hospital.inputs.clone()
    inputs[0] *= 1e6

    def clipped(rows: slice) -> np.ndarray:
        labels = hospital.labels[rows]
        sums = hospital.job.setup.trainer.clipped_gradient(
            *(build_module(hospital.job.setup, hospital.job.declared.spec), hospital.site.prepared.objective),
            *(inputs[rows], labels),
            plan=replace(plan, num_records=len(labels), expected_batch_size=float(len(labels))),
            state=last.began,
            sample_generator=torch.Generator(),
            device=torch.device("cpu"),
        )
        return np.concatenate([part.detach().double().numpy().ravel() for part in sums])

    moved = np.linalg.norm(clipped(slice(None)) - clipped(slice(1, None)))
    assert 0.5 * plan.step.clip_norm < moved <= plan.step.clip_norm * (1 + 1e-6)


@pytest.mark.parametrize("option", ["none", *AFTERWARDS, *KEPT])
def test_epsilon_of_what_was_executed_and_who_is_told_what(option: str, tmp_path: Path) -> None:
    own = QUICK if option in AFTERWARDS else ()
    ran = run(tmp_path, f"personalisation={option}", *own, "privacy.epsilon=3")
    result = ran.result
    assert result.privacy.epsilon is not None
    by_another = recompute(result.privacy.clients, result.privacy.delta)["pld"]
    assert by_another == pytest.approx(result.privacy.epsilon, rel=0.02)
    assert result.privacy.epsilon <= 3
    released = (ran.folder / "released.json").read_text()
    assert json.loads(released)["personal"] == []
    assert "local_only" not in released.replace("personal (", "")
    if option == "none":
        assert "Personal models" not in result.privacy.statement
        assert not (ran.folder / "hospitals").exists()
        return
    assert f"Personal models ({option}): " in result.privacy.statement
    assert ("without noise" in result.privacy.statement.split("Personal models")[1]) == (option in AFTERWARDS)
    assert [each.client for each in result.personal] == [0, 1, 2]
    assert sum(sum(each.test_counts) for each in result.personal) == 60
    for each in result.personal:
        assert set(each.local_only) == set(each.shared) == set(each.personal) != set()
        model = load_model(hospital_folder(ran.folder, each.client) / FILE)
        assert model.metadata["privacy"]["personalisation"] == option


def test_a_personal_figure_that_leaves_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: a hospital's own figure in a field that may leave. What leaves is compared with a run without."""
    before = run(tmp_path / "none", base=HEAD).folder
    finish = medx.outcome.finish

    def leaking(*arguments: Any, **named: Any) -> Any:
        result = finish(*arguments, **named)
        figure = result.personal[0].personal["auc"].value
        return result.model_copy(update={"threshold": figure})

    option = ("personalisation=fine_tune", *QUICK)
    after = run(tmp_path / "fine_tune", *option, base=HEAD).folder
    assert left(before) == left(after)
    with monkeypatch.context() as patch:
        patch.setattr("medx.experiment.finish", leaking)
        assert left(run(tmp_path / "leaks", *option, base=HEAD).folder) != left(before)


def left(folder: Path) -> dict[str, Any]:
    """What may leave of a run, but for what names the run and what was configured."""
    content = json.loads((folder / "released.json").read_text())
    apart = ("run", "started", "config", "tracking", "checkpoint", "environment")
    told = content["privacy"].pop("statement")
    kept = [line for line in told.splitlines() if not line.startswith("Personal models")]
    return {name: value for name, value in content.items() if name not in apart} | {"statement": kept}


def test_the_same_seed_gives_the_same_models_and_resumed_ones_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("personalisation=mr_mtl", "federation.num_rounds=3", "personalisation.mean_pull=0.1")
    whole = run(tmp_path / "whole", *overrides)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medx.screen.Screen.on_round", lambda self, record: stop() if record.round == 2 else None)
        assert call(tmp_path / "stopped", *overrides).code == 130
    resumed = call(tmp_path / "stopped", f"resume={tmp_path / 'stopped'}", base=())
    assert resumed.code == 0, resumed.err
    assert resumed.result.personal == whole.result.personal
    assert whole.result.personal[0].personal != whole.result.personal[0].shared


def test_a_round_that_is_done_again_goes_on_from_the_round_before(tmp_path: Path) -> None:
    layout = ModelLayout.of({"b": torch.zeros(2), "a": torch.zeros(1)})  # not in the order of names

    def kept(value: float) -> Kept:
        state = ModelState(layout, np.full(3, value, np.float32), np.full(3, -value, np.float32))
        return Kept(state, state.without_momentum())

    assert kept_before(tmp_path, 1) is None
    for number in (1, 2, 3, 4, 4, 3):
        keep(tmp_path, number, kept(float(number)))
    assert [kept_before(tmp_path, number) is not None for number in (1, 2, 3, 4)] == [False, False, True, True]
    found = [kept_before(tmp_path, number) for number in (3, 4)]
    assert [each and each.state.hash() for each in found] == [kept(2.0).state.hash(), kept(3.0).state.hash()]
    assert len(list(tmp_path.iterdir())) == 2, "2 and 3: what came after the round that was done again is gone"
    keep(tmp_path, 9, kept(9.0))  # it was not drawn for five rounds
    again = kept_before(tmp_path, 9)
    assert again is not None
    assert again.state.hash() == kept(3.0).state.hash()


@pytest.mark.parametrize("option", KEPT)
def test_a_round_done_again_from_another_own_model_is_a_release_of_its_own(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One noise on two sums would come off. What repeats bit by bit is free, and all else is charged anew."""
    again: list[tuple[Sent, Sent, int]] = []

    def twice(self: Hospital, state: ModelState, number: int) -> ClientUpdate:
        own = self.own_before(number)
        update = TRAIN(self, state, number)
        if self.client or number < 3:
            return update
        assert own is not None
        assert self.ledger is not None
        begin = self.job.setup.personalisation.begin
        began = begin(state, own.state, self.site.own_names)
        assert TRAIN(self, state, number).state.hash() == update.state.hash(), "the same, and free"
        changed = replace(own.state, parameters=own.state.parameters + np.float32(0.01))
        keep(self.folder, number - 1, replace(own, state=changed))
        with monkeypatch.context() as patch:
            charged: list[int] = []
            patch.setattr(self.ledger, "begin_round", lambda *_, release: charged.append(hash(release)))
            other = TRAIN(self, state, number)
            keep(self.folder, number - 1, own)
            TRAIN(self, state, number)
        ends = (begin(state, changed, self.site.own_names), other), (began, update)
        sent = [Sent(0, number, state, start, end.state, self) for start, end in ends]
        again.append((sent[0], sent[1], len(set(charged))))
        return update

    monkeypatch.setattr(Hospital, "train", twice)
    run(tmp_path, f"personalisation={option}", *FULL, "federation.num_rounds=3", "privacy.epsilon=8")
    ((one, other, releases),) = again
    assert one.began.hash() != other.began.hash()
    assert releases == 2, "the ledger is told of two"
    noises = [noise_of(each)[0] for each in (one, other)]
    assert abs(np.corrcoef(*noises)[0, 1]) < 5 / np.sqrt(len(noises[0]))


def test_no_personal_model_and_no_figure_of_one_is_tracked(tmp_path: Path) -> None:
    store = f"tracking.uri=sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    ran = run(tmp_path / "run", "tracking=mlflow", store, "personalisation=fine_tune", *QUICK)
    assert (hospital_folder(ran.folder, 0) / FILE).exists()
    stored = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in stored)
    own = {(hospital_folder(ran.folder, client) / FILE).read_bytes() for client in range(3)}
    assert not any(path.read_bytes() in own for path in stored)
    from mlflow.tracking import MlflowClient

    known = MlflowClient(ran.result.tracking["uri"]).get_run(ran.result.tracking["run_id"])
    assert not [name for name in known.data.metrics if "personal" in name or "local_only" in name]


def test_a_test_split_is_dealt_once_in_the_mixture_that_hospitals_have() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    train = np.repeat([0, 1], [300, 100])
    parts = (np.arange(0, 150), np.arange(150, 400))  # 150 of class 0; 150 and all of class 1

    class Prepared:
        pass

    prepared: Any = Prepared()
    prepared.parts, prepared.splits = parts, Prepared()
    prepared.splits.train = Prepared()
    prepared.splits.train.labels = train
    labels = np.repeat([0, 1], [60, 30])
    dealt = dealt_alike(prepared, labels, generator)
    assert sorted(np.concatenate(list(dealt.values()))) == list(range(90))
    assert np.bincount(labels[dealt[0]], minlength=2).tolist() == [30, 0]
    assert np.bincount(labels[dealt[1]], minlength=2).tolist() == [30, 30]


def test_what_is_left_open_is_chosen_by_the_metric_that_is_named() -> None:
    """One orders the records well and is sure of what is wrong, the other is unsure and orders them worse."""
    labels = np.array([0, 0, 1, 1])
    orders, unsure, neither = ([0.9, 0.95, 0.99, 0.995], [0.4, 0.55, 0.6, 0.52], [0.9, 0.8, 0.1, 0.2])
    guesses = [np.stack([1 - np.array(each), np.array(each)], 1) for each in (neither, unsure, orders)]
    assert best_of(guesses, labels, "binary", None) == best_of(guesses, labels, "binary", "auc") == 2
    assert best_of(guesses, labels, "binary", "loss") == 1
    assert best_of(guesses[::-1], labels, "binary", "balanced_accuracy") == 1
    one_class = np.zeros(4, np.int64)
    assert best_of(guesses, one_class, "binary", None) == 1, "no AUC: the least cross-entropy"
    three = [
        np.array([[0.8, 0.1, 0.1]] * 3 + [[0.2, 0.5, 0.3]]),
        np.array([[0.4, 0.3, 0.3]] * 2 + [[0.3, 0.6, 0.1]] * 2),
    ]
    kinds = np.array([0, 0, 0, 1])
    assert best_of(three, kinds, "multiclass", None) == best_of(three, kinds, "ordinal", None) == 0
    assert best_of([three[1], three[1]], kinds, "multiclass", None) == 0, "the first of equals"
    lost = np.full((4, 2), np.nan)
    assert best_of([lost, guesses[1]], labels, "binary", None) == 1


def test_what_does_not_go_together_is_refused_in_one_line(tmp_path: Path) -> None:
    for overrides, says in (
        (("personalisation=mr_mtl", "privacy=distributed_dp"), "personalisation=mr_mtl: each hospital's own steps"),
        (("personalisation=mr_mtl", "aggregation=secure"), "accepted: aggregation=plain"),
        (("personalisation=mr_mtl", "federation=fedprox"), "has a pull of its own"),
        (("personalisation=local_norm", *SCATTERNET), "the model has no GroupNorm"),
        (("personalisation=fine_tune", *SCATTERNET, "trainer=least_squares"), "takes a trainer of steps"),
        (("personalisation.x=1",), "personalisation"),
    ):
        least = "trainer=least_squares" in overrides
        base = (
            (*DATA, "tracking=none", "device=cpu", "noise=seed") if least or "model=scatternet" in overrides else TINY
        )
        if "privacy=distributed_dp" in overrides:
            base = tuple(part for part in base if "expected_batch_size" not in part)
        assert says in call(tmp_path / "refused", *overrides, base=base).refusal, overrides


def test_on_ray_hospitals_keep_the_same_and_buffers_fill_as_here(tmp_path: Path) -> None:
    """A worker is another process: what a hospital keeps lies in the run's folder, and who is faster does not matter.

    Both in one run, as Ray takes its time to start.
    """
    pytest.importorskip("ray")
    option = (
        "personalisation=mr_mtl",
        "personalisation.mean_pull=0.1",
        "federation=fedbuff",
        "federation.buffer_size=2",
    )
    here = run(tmp_path / "here", *option, "federation.num_rounds=3")
    arguments = (*TINY, *option, "federation.num_rounds=3", "runtime=ray", "runtime.num_cpus=2")
    overrides = {part.split("=", 1)[0]: part for part in (*arguments, f"hydra.run.dir={tmp_path / 'there'}")}.values()
    command = [sys.executable, "-c", SHORT, *overrides]
    there = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert there.returncode == 0, there.stderr
    second = ExperimentResult.load(tmp_path / "there" / "result.json")
    for client in range(3):
        both = [kept_before(hospital_folder(tmp_path / place, client), 4) for place in ("here", "there")]
        first, other = (each and each.state.parameters for each in both)
        assert first is not None
        np.testing.assert_allclose(other, first, atol=1e-6)
    assert [each.client for each in second.personal] == [0, 1, 2]
    assert second.personal[0].personal["auc"].value == pytest.approx(
        here.result.personal[0].personal["auc"].value, abs=1e-6
    )
    server, same = (load_checkpoint(tmp_path / name / "checkpoints") for name in ("here", "there"))
    assert (server.round, server.state.hash(), server.average.hash()) == (4, same.state.hash(), same.average.hash())
    assert second.privacy.clients == here.result.privacy.clients
    times = [[record.seconds["virtual"] for record in result.rounds] for result in (here.result, second)]
    assert times[0] == times[1]


@pytest.mark.parametrize("option", KEPT)
def test_an_audit_is_refused_where_hospitals_begin_from_their_own(option: str, tmp_path: Path) -> None:
    """It takes what lies between the model sent and the one that came for a release, which it is not here."""
    config, _ = composed((*TINY, f"personalisation={option}"), None, tmp_path)
    with pytest.raises(ConfigError, match=f"personalisation={option}: an audit hears .*; accepted: none"):
        audit(config, tmp_path, canaries=4, seeds=[0])
    assert not list(tmp_path.iterdir()), "before anything is trained"


def test_an_own_model_that_is_lost_before_a_resume_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    overrides = ("personalisation=mr_mtl", "federation.num_rounds=3")
    with monkeypatch.context() as patch:
        patch.setattr("medx.screen.Screen.on_round", lambda self, record: stop() if record.round == 2 else None)
        assert call(tmp_path, *overrides).code == 130
    for path in hospital_folder(tmp_path, 1).glob("kept_*"):
        path.unlink()
    resumed = call(tmp_path, f"resume={tmp_path}", base=())
    assert resumed.code == 0, resumed.err
    said = caplog.text + resumed.err + resumed.out
    assert "client 1: " in said
    assert "has no model of an earlier round; it begins from the shared one" in said
    assert "client 0: " not in said
