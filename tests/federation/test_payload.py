import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from medx.federation.payload import from_record, to_array, to_record, viewed

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
        back = from_record(ArrayRecord({"x": array}))["x"]
        np.testing.assert_array_equal(back.numpy(), values, strict=True)


def test_tensors_have_memory_of_their_own() -> None:
    record = to_record({"x": torch.ones(3)})
    from_record(record)["x"].zero_()
    assert from_record(record)["x"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        viewed(record)["x"].numpy()[:] = 0


def test_an_array_that_lies_about_its_content_is_read_by_its_bytes_or_refused() -> None:
    honest = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    lies = Array("float32", (3, 2), honest.stype, honest.data)
    assert from_record(ArrayRecord({"x": lies}))["x"].shape == (2, 3)
    for cut in (honest.data[:-1], b"", honest.data[:40]):
        with pytest.raises((ValueError, EOFError)):
            from_record(ArrayRecord({"x": Array("float32", (2, 3), honest.stype, cut)}))
    with pytest.raises(TypeError):
        from_record(ArrayRecord({"x": Array("float32", (2, 3), "pickle", honest.data)}))
    pickled = np.array([{}], dtype=object)
    with pytest.raises(ValueError, match=r"(?i)object array"):
        from_record(ArrayRecord({"x": Array("object", (1,), honest.stype, to_array(pickled).data)}))


def test_views_aggregate_to_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)

    def answers(quick: bool) -> list[RecordDict]:
        records = [to_record({"x": torch.randn(7, 5, generator=generator.manual_seed(i))}) for i in range(3)]
        return [
            RecordDict({"a": viewed(record) if quick else record, "m": MetricRecord({"n": i + 1})})
            for i, record in enumerate(records)
        ]

    quick, slow = (aggregate_arrayrecords(answers(way), "n")["x"] for way in (True, False))
    assert quick.data == slow.data
