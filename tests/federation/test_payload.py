import numpy as np
import pytest
import torch
from flwr.app import Array, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from medx.federation.payload import from_record, pack, to_array, to_record, unpack, values_of, viewed

VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    np.arange(24, dtype=np.int64).reshape(2, 3, 4)[:, ::2],
    np.array(2.5, dtype=np.float32),
    np.array([True, False]),
    np.zeros((0, 3), dtype=np.float16),
]


@pytest.mark.parametrize("values", VALUES, ids=lambda values: f"{values.dtype}{values.shape}")
def test_the_bytes_are_those_that_flower_writes_and_reads(values: np.ndarray) -> None:
    plain = np.ascontiguousarray(values).reshape(values.shape)
    ours, theirs = to_array(values), Array(plain)
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (theirs.dtype, theirs.shape, theirs.stype, theirs.data)
    np.testing.assert_array_equal(ours.numpy(), values, strict=True)
    for array in (ours, Array(values)):  # the second may lie in Fortran order, which the quick way must not take for C
        np.testing.assert_array_equal(values_of(array), values, strict=True)


def test_tensors_of_a_kind_travel_as_one_array_and_come_back_as_they_were() -> None:
    state = {
        "a.weight": torch.arange(6.0).view(2, 3).T,  # in no plain order
        "momentum/a.weight": torch.ones(3, 2),
        "steps": torch.tensor(7),
        "b": torch.tensor([1.5, -2.5]),
        "none": torch.zeros(0, 3),
    }
    record = to_record(state)
    assert sorted((array.dtype, array.shape) for array in record.values()) == [
        ("float32", (6,)),
        ("float32", (8,)),
        ("int64", (1,)),
    ]
    assert [layout.startswith("momentum/") for layout in record] == [False, True, False]
    back = from_record(record)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())
    (layout,) = to_record({"a": torch.zeros(2, 3)})
    for wrong in (np.zeros(5), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="6 values"):
            unpack(layout, wrong)
    bad = ['momentum/{"w":[6]}', '{"momentum/w":[6]}', '{"a":[2],"a":[6]}', '{"a":"6"}', '{"a":[6.0]}', '{"a":[-1]}']
    for wrong in ("a", "[]", "{}", "3", '{"a": [6]}', *bad):
        with pytest.raises(ValueError, match=r"not a layout|Expecting value"):
            unpack(wrong, np.zeros(6))
    assert pack({}) == {}


def test_tensors_have_memory_of_their_own() -> None:
    record = to_record({"x": torch.ones(3)})
    from_record(record)["x"].zero_()
    assert from_record(record)["x"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        next(iter(viewed(record).values())).numpy()[:] = 0


def test_an_array_that_lies_about_its_content_is_read_by_its_bytes_or_refused() -> None:
    honest = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert values_of(Array("float32", (3, 2), honest.stype, honest.data)).shape == (2, 3)
    for cut in (honest.data[:-1], b"", honest.data[:40]):
        with pytest.raises((ValueError, EOFError)):
            values_of(Array("float32", (2, 3), honest.stype, cut))
    with pytest.raises(TypeError):
        values_of(Array("float32", (2, 3), "pickle", honest.data))
    pickled = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match=r"(?i)object array"):
        values_of(Array("object", (1,), honest.stype, to_array(pickled).data))


def test_views_aggregate_to_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)

    def answers(quick: bool) -> list[RecordDict]:
        records = [to_record({"x": torch.randn(7, 5, generator=generator.manual_seed(i))}) for i in range(3)]
        return [
            RecordDict({"a": viewed(record) if quick else record, "m": MetricRecord({"n": i + 1})})
            for i, record in enumerate(records)
        ]

    quick, slow = (next(iter(aggregate_arrayrecords(answers(way), "n").values())) for way in (True, False))
    assert quick.data == slow.data
