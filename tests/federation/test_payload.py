import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from medx.federation.payload import (
    PayloadError,
    from_record,
    pack,
    to_array,
    to_record,
    unpack,
    values_of,
    viewed,
    well_formed,
)

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
    np.testing.assert_array_equal(values_of(ours), values, strict=True)
    if plain.size and plain.ndim > 1:  # Fortran's order must not be taken for C's
        with pytest.raises(PayloadError):
            values_of(Array(np.asfortranarray(values)))


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
        with pytest.raises(PayloadError, match="6 values"):
            unpack(layout, wrong)
    bad = ['momentum/{"w":[6]}', '{"momentum/w":[6]}', '{"a":[2],"a":[6]}', '{"a":"6"}', '{"a":[6.0]}', '{"a":[-1]}']
    large = ["[" * 100_000, '{"a":[' + "9" * 5000 + "]}", '{"a":[281474976710657]}', '{"a":[0,281474976710657]}']
    large += ['{"a":[4611686018427387904,4]}', '{"a":' + str([1] * 33).replace(" ", "") + "}", "x" * (1 << 18 | 1)]
    for wrong in ("a", "[]", "{}", "3", '{"a": [6]}', *bad, *large):
        with pytest.raises(PayloadError, match="layout"):
            unpack(wrong, np.zeros(6))
    assert pack({}) == {}


def test_tensors_have_memory_of_their_own() -> None:
    record = to_record({"x": torch.ones(3)})
    from_record(record)["x"].zero_()
    assert from_record(record)["x"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        next(iter(viewed(record).values())).numpy()[:] = 0


HONEST = Array(np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize(
    "lie",
    [
        Array("float32", (3, 2), HONEST.stype, HONEST.data),
        Array("float64", (3,), HONEST.stype, HONEST.data),
        *(Array("float32", (2, 3), HONEST.stype, data) for data in (HONEST.data[:-1], b"", HONEST.data[:40])),
        Array("float32", (2, 3), HONEST.stype, HONEST.data + b"x"),
        Array("float32", (2, 3), "pickle", HONEST.data),
        Array("object", (1,), HONEST.stype, to_array(np.array([{}], dtype=object)).data),
        Array("float32", (2, 3), HONEST.stype, HONEST.data.replace(b"'<f4',", b"'<f4'( ", 1)),  # a TokenError of NumPy
        Array("float32", (2, 3), HONEST.stype, HONEST.data.replace(b"(2, 3)", b"(9**9)", 1)),
        Array("S99999999999999", (1,), HONEST.stype, HONEST.data),
        Array("f4," * 1000, (1,), HONEST.stype, HONEST.data),
        Array("float32", (2**40, 2**40), HONEST.stype, HONEST.data),
        Array("float32", (0, 2**60, 2**60), HONEST.stype, HONEST.data),
        Array("float32", (-2, -3), HONEST.stype, HONEST.data),
        Array("float32", (1,) * 99, HONEST.stype, HONEST.data),
    ],
    ids=lambda lie: f"{lie.dtype[:15]}-{str(lie.shape)[:20]}-{lie.stype}-{len(lie.data)}",
)
def test_an_array_that_lies_about_its_content_is_refused(lie: Array) -> None:
    with pytest.raises(PayloadError):
        values_of(lie)
    assert not well_formed(ArrayRecord({"x": lie}))
    assert well_formed(ArrayRecord({"x": HONEST}))


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
