"""What a capable user writes first: Flower's simulation, Opacus's PrivacyEngine, five hospitals, a small CNN.

Five rounds of one local epoch, batch 64, on the images of $MEDX_DATA (or on phantoms). Written to be fair: data
loaded once a worker, two clients at once, evaluation once a round. Its epsilon is calibrated for the whole run.
Prints one line: seconds of the whole script, accuracy.
"""

import argparse
import time
import warnings

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import (
    BATCH,
    CLIP,
    DELTA,
    EPSILON,
    HOSPITALS,
    MOMENTUM,
    RATE,
    ROUNDS,
    load_arrays,
    small_cnn,
)


def partition(index: int) -> TensorDataset:
    """One hospital's images, cut from the whole without shuffling."""
    images, labels, _, _ = load_arrays()
    rows = torch.from_numpy(np.array_split(np.arange(len(labels)), HOSPITALS)[index])
    return TensorDataset(images[rows], labels[rows])


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch with a PrivacyEngine that is made for the occasion, as every public example does."""
    torch.set_num_threads(1)
    data = partition(int(context.node_config["partition-id"]))
    model = small_cnn()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loader = DataLoader(data, batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    model.train()
    private, optimizer, loader = PrivacyEngine().make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        epochs=ROUNDS,
        target_epsilon=EPSILON,
        target_delta=DELTA,
        max_grad_norm=CLIP,
    )
    criterion = nn.CrossEntropyLoss()
    for images, labels in loader:
        optimizer.zero_grad()
        criterion(private(images), labels).backward()
        optimizer.step()
    record = ArrayRecord(private._module.state_dict())
    metrics = MetricRecord({"num-examples": len(data)})
    return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test accuracy on the server."""
    _, _, images, labels = load_arrays()
    model = small_cnn()
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    with torch.no_grad():
        return MetricRecord({"accuracy": float((model(images).argmax(1) == labels).float().mean())})


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg for five rounds."""
    torch.manual_seed(0)
    result = FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(small_cnn().state_dict()),
        train_config=ConfigRecord(),
        num_rounds=ROUNDS,
        evaluate_fn=evaluate,
    )
    print("accuracy", result.evaluate_metrics_serverapp[ROUNDS]["accuracy"])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    warnings.filterwarnings("ignore")
    started = time.perf_counter()
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=HOSPITALS,
        backend_config={
            "init_args": {"logging_level": 40, "log_to_driver": False},
            "client_resources": {"num_cpus": 1},
        },
    )
    print(f"seconds {time.perf_counter() - started:.2f}")
