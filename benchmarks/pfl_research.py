"""Rounds of non-private federated averaging against pfl-research (Granqvist et al. 2024): optional, needs ``pfl``.

Same network, images, batch size and learning rate; one local epoch of all 4708 images at 5 and at 100 clients. ``pfl``
pins an older dp-accounting than MedX, so it goes into an environment of its own that sees this one's packages:

    .venv/bin/python -m venv /tmp/pfl
    echo $PWD/.venv/lib/python3.11/site-packages > /tmp/pfl/lib/python3.11/site-packages/medx.pth
    /tmp/pfl/bin/pip install --no-deps pfl==0.6.0 'multiprocess<0.71' 'prv-accountant<0.3' dill
    /tmp/pfl/bin/python -m benchmarks --only pfl
"""

import logging
import math
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import BATCH, RATE, Row, data_overrides, interleaved, prepare_images, ratio
from benchmarks.in_process import configure, time_rounds
from medx.federation.prepared import Prepared, prepare
from medx.federation.setup import Setup, build_module
from medx.model import Objective
from medx.runtime import Runtime

CLIENTS = (5, 100)


def measure(repeats: int) -> list[Row]:
    """Our time per round over theirs; a line and no figure where ``pfl`` is not there."""
    if find_spec("pfl") is None:
        print("pfl: not installed here, left out; benchmarks/pfl_research.py says how")
        return []
    rows = []
    with TemporaryDirectory() as folder:
        data = data_overrides(prepare_images(Path(folder)))
        for clients in CLIENTS:
            setup, runtime = set_up(clients, data)
            prepared = prepare(setup)
            parts = {
                "ours": lambda s=setup, r=runtime: time_rounds(s, r, 1)[0],
                "pfl": lambda s=setup, p=prepared: pfl_round(s, p),
            }
            for part in parts.values():
                part()
            figures = interleaved(parts, repeats)
            note = " / ".join(f"{np.median(figures[part]):.2f}" for part in parts) + " s"
            rows.append(Row(f"round over pfl's, {clients} clients", ratio(figures, "ours", "pfl"), "x", 1.05, note))
    return rows


def set_up(clients: int, data: list[str]) -> tuple[Setup, Runtime]:
    """One local epoch of the small CNN without privacy."""
    records = 4708 // clients
    return configure(
        [
            *data,
            "model=cnn",
            "privacy=none",
            f"federation.num_clients={clients}",
            "federation.num_rounds=1000",
            "federation.evaluate_every=1000",
            f"trainer.local_steps={math.ceil(records / BATCH)}",
            f"trainer.expected_batch_size={BATCH if records > BATCH else 'null'}",
            f"trainer.learning_rate={RATE}",
            "trainer.momentum=0",
            "trainer.share_momentum=false",
        ]
    )


class WithLoss(nn.Module):
    """The network as ``pfl`` wants it: with a loss and metrics of its own."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        """Mean loss of a batch."""
        return self.objective.loss(self.network(inputs), labels).mean()

    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor, **options: Any) -> dict[str, Any]:
        """None: nothing is evaluated on either side."""
        return {}


def pfl_round(setup: Setup, prepared: Prepared) -> float:
    """Seconds of ``pfl``'s second round; the first is not counted."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    logging.getLogger("pfl").setLevel(logging.ERROR)
    clients = list(range(setup.num_clients))
    held = {client: prepared.client(client) for client in clients}
    data = FederatedDataset(lambda client: Dataset(held[client]), get_user_sampler("minimize_reuse", clients))
    network = WithLoss(build_module(setup, prepared.spec), prepared.objective).train()
    central = torch.optim.SGD(network.parameters(), lr=1.0)
    ended: list[float] = []

    class Clock(TrainingProcessCallback):  # type: ignore[misc]
        """Notes when a round ended."""

        def after_central_iteration(self, *args: Any, **options: Any) -> tuple[bool, Any]:
            """Go on."""
            ended.append(time.perf_counter())
            return False, Metrics()

    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=2, evaluation_frequency=1000, train_cohort_size=len(clients), val_cohort_size=None
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=PyTorchModel(network, torch.optim.SGD, central),
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
        callbacks=[Clock()],
        send_metrics_to_platform=False,
    )
    return ended[1] - ended[0]
