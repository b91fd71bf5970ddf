"""Tensors on the wire, and what MedX knows of Flower's inside: a test for each thing, that says what Flower changed."""

import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy import Strategy
from torch import nn

from medx.federation import flower
from medx.federation.flower import (
    PayloadError,
    ValuesAtHand,
    aggregate,
    from_record,
    restore_strategy,
    show,
    strategy_state,
    to_array,
    to_record,
    values_of,
    wire_bytes,
)
from medx.schema import CheckpointError, ConfigError
from medx.trainer.state import MOMENTUM, ModelLayout, ModelState

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1.5, -2.5])}  # one in no plain order
STATE = ModelState.of_tensors(TENSORS | {MOMENTUM + name: 10 * value for name, value in TENSORS.items()})


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_the_bytes_are_those_that_flower_and_numpy_write_and_read(kind: str) -> None:
    values = np.arange(6, dtype=kind)
    ours, theirs = to_array(values), Array(values)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    np.testing.assert_array_equal(ours.numpy(), values, strict=True)
    np.testing.assert_array_equal(np.load(io.BytesIO(ours.data)), values, strict=True)
    np.testing.assert_array_equal(values_of(ours, layout(kind)), values, strict=True)


def layout(kind: str = "float32") -> ModelLayout:
    return ModelLayout.of({"x": torch.zeros(6, dtype=getattr(torch, kind))})


def test_a_state_travels_as_two_arrays_and_comes_back_as_it_was() -> None:
    record = to_record(STATE)
    assert [(array.dtype, array.shape) for array in record.values()] == [("float32", (8,))] * 2
    assert wire_bytes(STATE) == sum(len(array.data) for array in record.values())
    back = from_record(record, STATE.layout, momentum=True).tensors()
    expected = STATE.tensors()
    assert list(back) == list(expected) == ["a.weight", "b", "momentum/a.weight", "momentum/b"]
    assert all(torch.equal(back[name], value) for name, value in expected.items())
    assert torch.equal(back["a.weight"], TENSORS["a.weight"])
    with pytest.raises(PayloadError):
        from_record(record, STATE.layout, momentum=False)  # what is not asked for is not taken
    with pytest.raises(PayloadError):
        from_record(to_record(STATE.without_momentum()), STATE.layout, momentum=True)


def test_tensors_have_memory_of_their_own_and_what_was_received_is_read_only() -> None:
    state = from_record(to_record(STATE), STATE.layout, momentum=True)
    state.tensors()["b"].zero_()
    assert state.tensors()["b"].tolist() == [1.5, -2.5]
    for values in (state.parameters, ValuesAtHand(STATE.parameters).numpy()):
        with pytest.raises(ValueError, match="read-only"):
            values[:] = 0


def test_a_layout_is_the_module_s_and_no_other_of_the_same_size_is_taken_for_it() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    module[1].bias.requires_grad_(False)
    state = ModelState.of(module, momentum=True)
    assert state.layout.size == 12
    assert list(state.parameter_tensors()) == ["0.weight", "0.bias", "1.weight"]
    twin = ModelState.of(nn.Linear(3, 3))
    assert twin.layout.size == 12
    with pytest.raises(PayloadError):
        from_record(to_record(twin), state.layout, momentum=False)
    assert twin.layout.names != state.layout.names
    assert ModelState(twin.layout, state.parameters).hash() != state.without_momentum().hash()
    copy = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    copy[1].bias.requires_grad_(False)
    state.load_into(copy)
    assert np.array_equal(ModelState.of(copy).parameters, state.parameters)
    for found, kept in (("float32 and torch.float64", module.append(nn.Linear(1, 1).double())), ("none", nn.ReLU())):
        with pytest.raises(ConfigError, match=f"model: its trained parameters are .*{found}; accepted: one type of"):
            ModelState.of(kept)


HONEST = Array(np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
    "lie",
    [
        Array("float32", (3,), HONEST.stype, HONEST.data),
        Array("float32", (2, 3), HONEST.stype, HONEST.data),
        Array("float64", (3,), HONEST.stype, HONEST.data),
        *(Array("float32", (6,), HONEST.stype, data) for data in (HONEST.data[:-1], b"", HONEST.data[:40])),
        Array("float32", (6,), HONEST.stype, HONEST.data + b"x"),
        Array("float32", (6,), "pickle", HONEST.data),
        Array("object", (1,), HONEST.stype, HONEST.data),
        Array("float32", (6,), HONEST.stype, HONEST.data.replace(b"'<f4',", b"'<f4'( ", 1)),  # a TokenError of NumPy
        Array("float32", (6,), HONEST.stype, HONEST.data.replace(b"(6,)", b"9**9", 1)),
        Array("float32", (6,), HONEST.stype, Array(np.asfortranarray(np.ones((2, 3), np.float32))).data),
        Array("S99999999999999", (1,), HONEST.stype, HONEST.data),
        Array("f4," * 1000, (1,), HONEST.stype, HONEST.data),
        Array("float32", (2**40, 2**40), HONEST.stype, HONEST.data),
        Array("float32", (0, 2**60, 2**60), HONEST.stype, HONEST.data),
        Array("float32", (-6,), HONEST.stype, HONEST.data),
        Array("float32", (1,) * 99, HONEST.stype, HONEST.data),
    ],
    ids=lambda lie: f"{lie.dtype[:15]}-{str(lie.shape)[:20]}-{lie.stype}-{len(lie.data)}",
)
def test_an_array_that_lies_about_its_content_is_refused(lie: Array) -> None:
    with pytest.raises(PayloadError):
        values_of(lie, layout())
    name = layout().names[0]
    with pytest.raises(PayloadError):
        from_record(ArrayRecord({name: lie}), layout(), momentum=False)
    assert from_record(ArrayRecord({name: HONEST}), layout(), momentum=False).finite


@pytest.mark.parametrize(
    "used",
    [
        strategy.FedAvg(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1),
        strategy.FedMedian(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1),
        strategy.FedTrimmedAvg(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1, beta=0.3),
        strategy.Krum(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1, num_malicious_nodes=0),
        strategy.FedAdam(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1),
        strategy.FedYogi(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1),
        strategy.FedAvgM(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1, server_momentum=0.9),
        strategy.FedProx(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1, proximal_mu=1.0),
    ],
    ids=lambda used: type(used).__name__,
)
def test_a_strategy_gives_the_same_bits_for_values_at_hand_as_for_flower_s_own_arrays(used: Strategy) -> None:
    flower.become_a_server()
    drawn = np.random.default_rng(0).standard_normal((4, STATE.layout.size)).astype(np.float32)
    states = [ModelState(STATE.layout, vector) for vector in drawn]
    name, plainly = STATE.layout.names[0], copy.deepcopy(used)
    show(used, 1, STATE)
    ours = aggregate(used, 1, [(state, weight) for weight, state in enumerate(states, start=1)])
    grid: Any = flower.OneNode()
    list(plainly.configure_train(1, to_record(STATE.without_momentum()), flower.ConfigRecord(), grid))
    replies = [
        Message(RecordDict({"arrays": to_record(state), "metrics": MetricRecord({"num-examples": weight})}), 1, "train")
        for weight, state in enumerate(states, start=1)
    ]
    arrays, _ = plainly.aggregate_train(1, replies)
    assert arrays is not None, "Flower's strategy gives no result for valid replies"
    assert ours is not None
    assert ours.dtype == np.float32
    theirs = arrays[name].numpy().astype(np.float32)
    assert np.array_equal(ours, theirs), "Flower's strategies read arrays in another way than by numpy()"


@pytest.mark.parametrize("name", ["FedAdam", "FedYogi", "FedAvgM"])
def test_a_strategy_goes_on_from_its_saved_buffers(name: str) -> None:
    flower.become_a_server()

    def one_round(used: Any, state: ModelState, number: int) -> ModelState:
        show(used, number, state)
        noise = np.random.default_rng(number)
        answers = [(state.moved(noise.standard_normal(state.layout.size)), 1) for _ in range(2)]
        vector = aggregate(used, number, answers)
        assert vector is not None
        return ModelState(state.layout, vector)

    def fresh() -> Any:
        more = {"server_momentum": 0.9} if name == "FedAvgM" else {}
        return getattr(strategy, name)(fraction_train=1.0, min_train_nodes=1, min_available_nodes=1, **more)

    first, state = fresh(), ModelState.of_tensors({"z": torch.zeros(2, 3), "a": torch.zeros(4), "m": torch.zeros(1)})
    for number in (1, 2):
        state = one_round(first, state, number)
    kept = strategy_state(first, state.layout)
    assert kept, f"Flower's {name} keeps its memory in none of {(*flower.DICTIONARIES, flower.LIST)} any more"
    resumed, forgetful = fresh(), fresh()
    restore_strategy(resumed, kept, state.layout)
    expected = one_round(first, state, 3)
    assert np.array_equal(one_round(resumed, state, 3).parameters, expected.parameters)
    assert not np.allclose(one_round(forgetful, state, 3).parameters, expected.parameters)
    if name == "FedAvgM":
        with pytest.raises(CheckpointError, match=r"as MedX 0.2 did"):
            restore_strategy(
                fresh(), {"momentum_vector/0": torch.zeros(3), "momentum_vector/1": torch.zeros(8)}, state.layout
            )


def test_flower_reads_a_message_s_sender_and_id_where_they_are_set() -> None:
    flower.become_a_server()
    request = Message(RecordDict(), 7, "train")
    assert request.metadata.src_node_id == 1, "Flower takes a message's sender from elsewhere than TaskIdentity.node_id"
    flower.name_message(request, "abc")
    assert request.metadata.message_id == "abc", "Flower keeps a message's id elsewhere than in metadata._message_id"
    reply = Message(RecordDict(), reply_to=request)
    assert reply.metadata.reply_to_message_id == "abc", "a reply of Flower's does not name the message by its id"
    assert reply.metadata.src_node_id == 7
    assert flower.empty_run().run_id == 1, "Flower's Run has no create_empty(run_id) any more"


def test_no_other_module_knows_flower_s_inside() -> None:
    public = {"flwr.app", "flwr.app.typing", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
    public.add("flwr.simulation")
    package = Path(flower.__file__).parents[1]
    inside = (Path(flower.__file__), package / "site" / "flower.py")  # of messages, and of processes
    sources = {path: path.read_text() for path in package.rglob("*.py") if path not in inside}
    imported = {name for text in sources.values() for name in re.findall(r"(?:from|import) (flwr[\w.]*)", text)}
    assert imported == public
    assert not [path for path, text in sources.items() if "metadata.__dict__" in text or "metadata._" in text]
