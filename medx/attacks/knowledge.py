"""What an observer of an audit knows beforehand: every record's clipped gradient, and which records surely are there.

Gradients are computed by a loop over records, with nothing of the trainer's: what clips there is what is audited.
"""

from dataclasses import dataclass

import numpy as np
import torch

from medx.attacks.canaries import CanaryData
from medx.attacks.evidence import Knowledge, basis
from medx.dataset import refuse_beyond_memory
from medx.federation.prepared import Prepared
from medx.federation.setup import Job, build_module
from medx.schema import ConfigError
from medx.trainer.state import trained_parameters

LONG = 1e3  # a canary's feature; all others are nought


@dataclass(frozen=True)
class Directions:
    """Clipped gradients in clip norms ``[n, dimension]`` at the first model, and which hospital has which row."""

    job: Job
    coins: np.ndarray
    canaries: np.ndarray
    blanks: np.ndarray
    others: np.ndarray
    parts: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, job: Job, prepared: Prepared) -> "Directions":
        """Of the run's own data and model."""
        data = canary_data(job)
        labels = np.arange(data.count) % prepared.spec.num_classes
        classes = np.unique(labels)
        rows = np.arange(0) if data.hospitals else np.arange(data.count, len(prepared.splits.train))
        gradients = Gradients(job, prepared)
        there, blank = canary_inputs(prepared, data)
        return cls(
            job,
            data.coins,
            gradients(there, torch.from_numpy(labels)),
            gradients(blank.expand(len(classes), *blank.shape[1:]), torch.from_numpy(classes)),
            gradients(prepared.inputs["train"][rows], prepared.labels["train"][rows]),
            prepared.parts,
        )

    def towards(self, hospital: int | None, releases: int) -> tuple[Knowledge, np.ndarray]:
        """What is known of one hospital's records, or of all; and the coins of the canaries there."""
        count = len(self.coins)
        here = np.arange(count + len(self.others)) if hospital is None else self.parts[hospital]
        canaries, others = here[here < count], here[here >= count] - count
        known = Knowledge(self.canaries[canaries], self.others[others], self.blanks, self.sampling, releases)
        return known, self.coins[canaries]

    @property
    def sampling(self) -> float:
        """The chance of a record, or of a hospital where that is the unit, to be in a release."""
        plan = self.job.plan.clients[0]
        event = self.job.plan.event_of(plan)
        return event.sampling_probability if event else plan.sampling_probability

    def span(self, hospitals: list[int | None]) -> np.ndarray:
        """Orthonormal rows in which all records of these hospitals together lie, where all are in every release."""
        rows = []
        for hospital in hospitals:
            known, coins = self.towards(hospital, 1)
            rows += [known.others.sum(0), known.canaries[coins].sum(0), *known.blanks]
        return basis(np.stack(rows))


class Gradients:
    """Clipped per-record gradients in clip norms, a backward pass each; of a client they are its update's direction."""

    def __init__(self, job: Job, prepared: Prepared) -> None:
        self._objective = job.setup.trainer.trained_objective(prepared.objective)
        self._module = build_module(job.setup, prepared.spec)
        self._parameters = [parameter for _, parameter in trained_parameters(self._module)]
        step = job.plan.clients[0].step
        self._clip = 0.0 if job.plan.client_release else step.clip_norm if step else None

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """``float64 [n, dimension]``."""
        size = sum(parameter.numel() for parameter in self._parameters)
        what = f"an audit: {size} numbers of each of {len(labels)} records"
        refuse_beyond_memory(what, 8 * size * len(labels), "a model with fewer parameters, or fewer records")
        rows = np.zeros((len(labels), size))
        for place in range(len(labels)):
            rows[place] = self._one(inputs[place : place + 1], labels[place : place + 1])
        return rows

    def _one(self, row: torch.Tensor, label: torch.Tensor) -> np.ndarray:
        loss = self._objective.loss(self._module(row), label).sum()
        found = torch.autograd.grad(loss, self._parameters)
        vector = torch.cat([gradient.reshape(-1) for gradient in found]).double().numpy()
        if self._clip is None:
            return vector
        return vector / max(float(np.linalg.norm(vector)), self._clip)


def canary_data(job: Job) -> CanaryData:
    """The data set of an audited run; raises ConfigError where it is another."""
    data = job.setup.dataset
    if not isinstance(data, CanaryData):
        raise ConfigError("dataset: no canaries are in it; accepted: a run that is made for an audit")
    return data


def canary_inputs(prepared: Prepared, data: CanaryData) -> tuple[torch.Tensor, torch.Tensor]:
    """All canaries as the model takes them ``[count, ...]``, and the blank ``[1, ...]``.

    Of a model with fixed features each is long in one feature, so that their gradients are orthogonal: no images have
    features with so little in common.
    """
    inputs = prepared.inputs["train"]
    if prepared.features is None or data.hospitals:
        mosaics, blank = data.images(prepared.splits)
        return _taken(prepared, mosaics), _taken(prepared, blank)
    features = inputs.shape[1:].numel()
    if inputs.ndim != 2 or data.count > features:
        raise ConfigError(f"canaries={data.count}: accepted are at most the {features} features of this model")
    return LONG * torch.eye(data.count, features), torch.zeros(1, features)


def put_in(prepared: Prepared, data: CanaryData) -> None:
    """Put canaries that no image makes among the training inputs, where their coins say so."""
    if prepared.features is not None and not data.hospitals:
        there, blank = canary_inputs(prepared, data)
        prepared.inputs["train"][: data.count] = torch.where(torch.from_numpy(data.coins)[:, None], there, blank)


def _taken(prepared: Prepared, images: np.ndarray) -> torch.Tensor:
    tensor = prepared.splits.to_tensor(images)
    if prepared.features is None:
        return tensor
    with torch.no_grad():
        return torch.cat([prepared.features(part) for part in tensor.split(32)])
