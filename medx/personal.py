"""A model for each hospital, once the rounds are over: trained where its records are, measured beside the shared one.

Nothing here reaches a message: the rounds are over, and what is made stays in the hospital's folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from medx.aggregation.integer_noise import NoiseStream
from medx.dataset import Task
from medx.dataset.dealing import folded
from medx.dataset.labels import count_classes, strata
from medx.federation.prepared import Prepared
from medx.federation.server import predict
from medx.federation.setup import Job, build_module, build_network
from medx.measurement import RESAMPLES, own_test_rows
from medx.metrics import bootstrap, choose_threshold, choose_thresholds, evaluate
from medx.model.export import describe, save_model
from medx.output import counted
from medx.personalisation import Afterwards, Ditto, FineTune, Interpolate, Personalisation
from medx.personalisation.kept import hospital_folder, kept_before
from medx.randomness import derive_key, derive_seed, keyed_generator, numpy_generator
from medx.results import Interval, PersonalResult
from medx.trainer.local_training import Trainer
from medx.trainer.state import ModelState, Tensors

FILE = "personal.safetensors"
STEPS_ALONE = 300  # of the local-only model, where an option has no steps of its own
Candidate = tuple[dict[str, float], ModelState]  # what was left open, and the model that it comes to


@dataclass(frozen=True)
class Home:
    """One hospital with its own records, and what it may train with; ``shared`` is the model of the run."""

    job: Job
    prepared: Prepared
    client: int
    shared: ModelState

    @property
    def trainer(self) -> Trainer:
        """The run's."""
        return self.job.setup.trainer

    @cached_property
    def records(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs ``[n, ...]`` and labels ``[n]``."""
        return self.prepared.client(self.client)

    @cached_property
    def initial(self) -> ModelState:
        """Where the run began."""
        return ModelState.of(build_module(self.job.setup, self.prepared.spec), momentum=self.trainer.share_momentum)

    def trained(
        self, rows: np.ndarray, begin: ModelState, steps: int, *, pull: float = 0.0, key: str = ""
    ) -> ModelState:
        """The model after ``steps`` without noise on these of its records; where it diverges, as it began."""
        inputs, labels = (part[torch.from_numpy(rows)] for part in self.records)
        plan = replace(
            self.job.plan.clients[self.client],
            num_records=len(rows),
            num_patients=None,
            sampling_probability=self.trainer.sampling_probability_for(len(rows)),
            expected_batch_size=self.trainer.sampling_probability_for(len(rows)) * len(rows),
            step=None,
            steps_per_round=steps,
            num_rounds=1,
            spare_rounds=0,
        )
        purposes = ("personal sampling", "personal views", "personal noise")
        sample, views, noise = (derive_key(self.job.setup.seed, each, self.client, key) for each in purposes)
        started = replace(begin, momentum=np.zeros_like(begin.parameters) if self.trainer.share_momentum else None)
        update = self.trainer.train(
            module=build_module(self.job.setup, self.prepared.spec),
            objective=self.prepared.objective,
            inputs=inputs,
            labels=labels,
            plan=plan,
            state=started,
            sample_generator=keyed_generator(sample),
            noise_stream=NoiseStream(noise),
            device=torch.device(self.job.setup.device),
            proximal_mu=pull,
            anchor=self.shared,
            view_generator=keyed_generator(views),
        )
        return update.state.without_momentum()

    def probabilities(self, state: ModelState, inputs: torch.Tensor) -> np.ndarray:
        """``float64 [n, classes]``."""
        device = self.job.setup.device
        network = build_network(self.job.setup, self.prepared.spec).to(device)
        return predict(network, state.parameter_tensors(), self.prepared, inputs, device).numpy()

    def candidates(self, option: Afterwards, rows: np.ndarray, key: str) -> Iterator[Candidate]:
        """What an option leaves open, each with the model that it comes to on these records; the shared one first."""
        yield {"shared": 1.0}, self.shared
        if isinstance(option, FineTune):
            for share in option.shares:
                steps = max(1, round(share * option.steps))
                yield {"steps": float(steps)}, self.trained(rows, self.shared, steps, key=key)
        elif isinstance(option, Ditto):
            for pull in option.pulls:
                yield {"pull": pull}, self.trained(rows, self.shared, option.steps, pull=pull, key=key)
        elif isinstance(option, Interpolate):
            own = self.trained(rows, self.initial, option.steps, key=key)
            for weight in option.weights:
                mixed = self.shared.parameters + weight * (own.parameters - self.shared.parameters)
                yield {"weight": weight}, ModelState(own.layout, mixed.astype(own.parameters.dtype))

    def held_out(self, option: Afterwards) -> tuple[list[np.ndarray], np.ndarray] | None:
        """Each candidate's probabilities for records that its model did not see, and their labels.

        None for too few patients to part.
        """
        inputs, labels = self.records
        everything = np.arange(len(labels))
        numbers = self.prepared.patients(self.client)
        patients = everything if numbers is None else numbers
        if len(np.unique(patients)) < option.folds:
            return None
        seen: list[list[np.ndarray]] = []
        order: list[np.ndarray] = []
        kinds = strata(labels.numpy())
        for part in range(option.folds):
            codes = folded(np.zeros(len(labels), np.int64), kinds, patients, (part, option.folds))
            held, rows = np.flatnonzero(codes == 1), np.flatnonzero(codes == 0)
            models = [state for _, state in self.candidates(option, rows, f"part {part}")]
            seen.append([self.probabilities(state, inputs[torch.from_numpy(held)]) for state in models])
            order.append(held)
        return [np.concatenate(each) for each in zip(*seen, strict=True)], labels.numpy()[np.concatenate(order)]

    def chosen(self, option: Afterwards) -> Candidate:
        """The candidate that does best on records that its model did not see, trained on all of them."""
        found = self.held_out(option)
        if found is None:
            return {"shared": 1.0}, self.shared
        best = best_of(*found, self.prepared.spec.task, option.choose_by)
        everything = np.arange(len(self.records[1]))
        return next(islice(self.candidates(option, everything, "all"), best, None))


def best_of(guesses: Sequence[np.ndarray], labels: np.ndarray, task: Task, choose_by: str | None) -> int:
    """Whose probabilities are best by this metric, the first of equals; see ``Afterwards``."""
    found = [evaluate(each, labels, task) for each in guesses]
    name = choose_by or ("auc" if task in ("binary", "multilabel") else "balanced_accuracy")
    scores = [score for each in found if (score := each[name]) is not None]
    if name != "loss" and len(scores) == len(found):
        return int(np.argmax(scores))
    return int(np.argmin([np.inf if each["loss"] is None else each["loss"] for each in found]))


def personal_models(job: Job, prepared: Prepared, average: Tensors) -> list[PersonalResult]:
    """Every hospital's own model, saved in its folder and measured on its own test images; empty without the option.

    ``average`` are the tensors of the run's model.
    """
    option = job.setup.personalisation
    if option.told is None:
        return []
    shared = ModelState(job.layout, job.layout.join(average))
    clients = [client for client, part in enumerate(prepared.parts) if len(part)]
    tests, told = own_test_rows(prepared), bool(own_test_rows(prepared))
    if not told:
        generator = numpy_generator(derive_seed(job.setup.seed, "personal", "test"))
        tests = dealt_alike(prepared, prepared.splits.test.labels, generator)
    results, progress = [], counted("personal models", len(clients))
    for done, client in enumerate(clients, start=1):
        home = Home(job, prepared, client, shared)
        chosen, model = personal_model(home, option)
        save(home, model)
        everything = np.arange(len(prepared.parts[client]))
        alone = home.trained(everything, home.initial, getattr(option, "steps", STEPS_ALONE), key="all")
        measured = [measured_on(home, state, tests[client]) for state in (alone, shared, model)]
        results.append(
            PersonalResult(
                client=client,
                name=prepared.hospital_name(client),
                method=option.name,
                chosen=chosen,
                own=told,
                test_counts=count_classes(prepared.splits.test.labels[tests[client]], prepared.spec.num_classes),
                **dict(zip(("local_only", "shared", "personal"), measured, strict=True)),
            )
        )
        progress(done)
    return results


def personal_model(home: Home, option: Personalisation) -> Candidate:
    """What the option gives this hospital, and what was chosen for it."""
    if isinstance(option, Afterwards):
        return home.chosen(option)
    kept = kept_before(hospital_folder(home.job.folder, home.client), home.job.setup.federation.num_rounds + 1)
    if kept is None:  # it was in no round
        return {"shared": 1.0}, home.shared
    names = option.own_names(build_module(home.job.setup, home.prepared.spec))
    return {}, option.begin(home.shared, kept.average, names)


def save(home: Home, state: ModelState) -> None:
    """The model as a file of the hospital's own folder, which says that no guarantee of the run is meant for it."""
    splits, setup = home.prepared.splits, home.job.setup
    network = build_network(setup, splits.spec)
    state.load_into(network)
    about = describe(
        setup.model,
        splits.spec,
        splits.mean,
        splits.std,
        threshold=threshold_of(home, state),
        privacy={"personalisation": setup.personalisation.name, "says": setup.personalisation.says},
        run=home.job.run_id,
        classes=splits.class_names,
        recipe=getattr(setup.dataset, "recipe", None),
    )
    folder = hospital_folder(home.job.folder, home.client)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / FILE, about, home.prepared.features, network)


def threshold_of(home: Home, state: ModelState) -> float | list[float | None] | None:
    """As the run's own is chosen, on validation; None for more than two classes."""
    task = home.prepared.spec.task
    if task not in ("binary", "multilabel"):
        return None
    labels = home.prepared.labels["validation"].numpy()
    predicted, rule = home.probabilities(state, home.prepared.inputs["validation"]), home.job.setup.threshold
    return choose_threshold(predicted, labels, rule) if task == "binary" else choose_thresholds(predicted, labels, rule)


def measured_on(home: Home, state: ModelState, rows: np.ndarray) -> dict[str, Interval]:
    """Metrics of a model on these test rows, with 95 % bootstrap intervals over images."""
    if not len(rows):
        return {}
    predicted = home.probabilities(state, home.prepared.inputs["test"][torch.from_numpy(rows)])
    generator = numpy_generator(derive_seed(home.job.setup.seed, "bootstrap", "personal", home.client))
    labels, threshold = home.prepared.labels["test"].numpy()[rows], threshold_of(home, state)
    return bootstrap(predicted, labels, home.prepared.spec.task, threshold, generator, resamples=RESAMPLES)


def dealt_alike(prepared: Prepared, labels: np.ndarray, generator: np.random.Generator) -> dict[int, np.ndarray]:
    """Rows with these labels, each given to one hospital: of every class in the shares in which they have train's.

    For hospitals that the data do not tell: what comes to one is then of the kinds that it has, in about its mixture.
    """
    kinds, own = strata(labels), strata(prepared.splits.train.labels)
    found: dict[int, list[np.ndarray]] = {client: [] for client in range(len(prepared.parts))}
    for kind in np.unique(kinds):
        rows = generator.permutation(np.flatnonzero(kinds == kind))
        counts = np.array([(own[part] == kind).sum() for part in prepared.parts], float)
        if not counts.sum():
            continue
        ends = np.round(np.cumsum(counts) / counts.sum() * len(rows)).astype(int)
        for client, piece in enumerate(np.split(rows, ends[:-1])):
            found[client].append(piece)
    return {client: np.sort(np.concatenate(pieces)) for client, pieces in found.items() if pieces}
