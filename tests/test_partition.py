"""Partitions: disjoint covers, the skew that they promise, and what they refuse."""

import numpy as np
import pytest
from pydantic import ValidationError

from medx.partition import Dirichlet, Iid, Label, Quantity, RandomPartition, Site, partition_table, shards_by_class
from medx.randomness import numpy_generator
from medx.schema import ConfigError

NUM_CLASSES = 4
LABELS = numpy_generator(0).permutation(np.repeat(np.arange(NUM_CLASSES), [100, 400, 250, 51]))
RULES = {"min_records": 1, "allow_empty": False}


def every() -> list[RandomPartition]:
    return [
        Iid(**RULES),
        Dirichlet(alpha=0.3, **RULES),
        Dirichlet(alpha=0.001, **RULES),
        Quantity(alpha=1.0, **RULES),
        Label(classes_per_client=1, **RULES),
        Label(classes_per_client=2, **RULES),
    ]


def split(
    partition: RandomPartition, num_clients: int = 7, seed: int = 0, labels: np.ndarray = LABELS
) -> list[np.ndarray]:
    return partition.split(labels, NUM_CLASSES, num_clients, numpy_generator(seed))


def spread(parts: list[np.ndarray]) -> float:
    """Mean total variation distance between a client's class mix and the whole's."""
    whole = np.bincount(LABELS, minlength=NUM_CLASSES) / len(LABELS)
    mixes = [np.bincount(LABELS[part], minlength=NUM_CLASSES) / len(part) for part in parts]
    return float(np.mean([np.abs(mix - whole).sum() / 2 for mix in mixes]))


@pytest.mark.parametrize("partition", every(), ids=repr)
@pytest.mark.parametrize("num_clients", [4, 7])
def test_every_row_goes_to_exactly_one_client(partition: RandomPartition, num_clients: int) -> None:
    parts = split(partition, num_clients)
    assert len(parts) == num_clients
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))


@pytest.mark.parametrize("partition", every(), ids=repr)
def test_the_generator_alone_decides(partition: RandomPartition) -> None:
    first = split(partition)
    np.random.seed(1)
    again, other = split(partition), split(partition, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_label_skew_grows_as_alpha_shrinks() -> None:
    mean = {
        alpha: np.mean([spread(split(Dirichlet(alpha=alpha, **RULES), seed=seed)) for seed in range(20)])
        for alpha in (1000.0, 3.0, 0.3, 0.01)
    }
    iid = np.mean([spread(split(Iid(**RULES), seed=seed)) for seed in range(20)])
    assert abs(mean[1000.0] - iid) < 0.02
    assert mean[1000.0] + 0.1 < mean[3.0]
    assert mean[3.0] + 0.1 < mean[0.3] < mean[0.01]


def test_the_first_mix_has_the_moments_of_its_dirichlet() -> None:
    # Client 0 meets full pools: mean prior, variance prior (1 - prior) / (alpha + 1) plus the multinomial's.
    # Dirichlet(alpha) without the prior, a common slip, would have mean 1/4 for each class.
    alpha, prior = 5.0, np.bincount(LABELS) / len(LABELS)
    mixes = np.array(
        [np.bincount(LABELS[split(Dirichlet(alpha=alpha, **RULES), 40, seed)[0]], minlength=4) for seed in range(600)]
    )
    size = mixes[0].sum()
    expected = prior * (1 - prior) * (1 / (alpha + 1) + alpha / (alpha + 1) / size)
    np.testing.assert_allclose(mixes.mean(0) / size, prior, atol=0.03)
    np.testing.assert_allclose((mixes / size).var(0), expected, rtol=0.25)


def test_iid_and_dirichlet_sizes_are_equal_and_quantity_sizes_are_not() -> None:
    for partition in (Iid(**RULES), Dirichlet(alpha=0.1, **RULES)):
        assert np.ptp([len(part) for part in split(partition)]) <= 1
    ranges = [
        np.mean([np.ptp([len(part) for part in split(Quantity(alpha=alpha, **RULES), seed=s)]) for s in range(10)])
        for alpha in (1000.0, 3.0, 0.5)
    ]
    assert ranges[0] < 30 < ranges[1] < ranges[2]
    assert spread(split(Quantity(alpha=1.0, **RULES))) < 0.15


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_no_client_sees_more_classes_than_allowed(classes: int) -> None:
    for seed in range(20):
        parts = split(Label(classes_per_client=classes, **RULES), seed=seed)
        seen = [len(np.unique(LABELS[part])) for part in parts]
        assert max(seen) <= classes


def test_shards_are_of_about_one_size() -> None:
    assert shards_by_class(np.array([100, 400, 0, 50]), 11).tolist() == [2, 8, 0, 1]


@pytest.mark.parametrize(
    ("partition", "num_clients", "key"),
    [
        (Iid(min_records=1, allow_empty=False), len(LABELS) + 1, "min_records"),
        (Iid(min_records=0, allow_empty=False), len(LABELS) + 1, "min_records"),
        (Iid(min_records=200, allow_empty=False), 5, "min_records=200"),
        (Quantity(alpha=0.01, min_records=100, allow_empty=False), 7, "min_records=100"),
        (Label(classes_per_client=1, **RULES), 3, "classes_per_client=1"),
        (Label(classes_per_client=5, **RULES), 3, "classes_per_client=5"),
    ],
    ids=repr,
)
def test_impossible_demands_are_refused_by_key(partition: RandomPartition, num_clients: int, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^partition\.{key}") as refused:
        split(partition, num_clients)
    assert "\n" not in str(refused.value)


def test_small_clients_are_drawn_again() -> None:
    partition = Quantity(alpha=0.5, min_records=20, allow_empty=False)
    first = [Quantity(alpha=0.5, **RULES).draw(LABELS, NUM_CLASSES, 5, numpy_generator(seed)) for seed in range(20)]
    assert any(min(map(len, parts)) < 20 for parts in first)
    assert all(min(map(len, split(partition, 5, seed))) >= 20 for seed in range(20))


def test_empty_clients_only_where_allowed() -> None:
    few = LABELS[:3]
    with pytest.raises(ConfigError, match="min_records"):
        split(Iid(**RULES), 5, labels=few)
    parts = split(Iid(min_records=1, allow_empty=True), 5, labels=few)
    assert sorted(map(len, parts)) == [0, 0, 1, 1, 1]
    assert all(part.dtype == np.int64 for part in parts)


def test_a_class_without_records_is_no_obstacle() -> None:
    labels = np.repeat([0, 2], 50)
    for partition in every():
        parts = partition.split(labels, 5, 4, numpy_generator(0))
        assert sum(map(len, parts)) == 100


def test_the_table_counts_what_was_dealt() -> None:
    rows = partition_table([np.array([0, 1]), np.array([2]), np.array([], np.int64)], np.array([1, 1, 0]), ("a", "b"))
    assert rows == [
        {"hospital": 0, "records": 2, "a": 0, "b": 2},
        {"hospital": 1, "records": 1, "a": 1, "b": 0},
        {"hospital": 2, "records": 0, "a": 0, "b": 0},
    ]


def test_unknown_keys_and_bad_values_are_refused() -> None:
    good = {"alpha": 1.0, **RULES}
    for bad in ({"alhpa": 1.0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"min_records": -1}):
        with pytest.raises(ValidationError):
            Dirichlet(**(good | bad))


def test_a_patient_is_at_one_hospital() -> None:
    patients = numpy_generator(1).permutation(np.arange(len(LABELS)) // 3)
    for partition in every():
        parts = partition.split(LABELS, NUM_CLASSES, 7, numpy_generator(0), patients=patients, hospitals=None)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
        met = np.concatenate([np.unique(patients[part]) for part in parts])
        assert len(met) == len(np.unique(met)), partition


def test_patients_of_one_image_each_change_no_draw() -> None:
    for partition in every():
        known = partition.split(LABELS, NUM_CLASSES, 7, numpy_generator(0), patients=np.arange(len(LABELS)) + 5)
        assert all(np.array_equal(a, b) for a, b in zip(split(partition), known, strict=True))


def test_sites_are_the_hospitals_of_the_data() -> None:
    hospitals = numpy_generator(2).choice([3, 5, 9], len(LABELS), p=[0.7, 0.2, 0.1])
    patients = np.arange(len(LABELS))

    def sites(shared: str = "refuse", clients: int = 3, **known: np.ndarray) -> list[np.ndarray]:
        return Site(shared_patients=shared).split(LABELS, NUM_CLASSES, clients, numpy_generator(0), **known)

    parts = sites(hospitals=hospitals, patients=patients)
    for hospital, part in zip((3, 5, 9), parts, strict=True):
        np.testing.assert_array_equal(part, np.flatnonzero(hospitals == hospital))
    with pytest.raises(ConfigError, match=r"the data set has no hospitals; accepted: .*dataset\.columns\.hospital"):
        sites()
    with pytest.raises(ConfigError, match=r"federation\.num_clients=5: .* training records, 3"):
        sites(clients=5, hospitals=hospitals)
    patients[np.flatnonzero(hospitals == 9)[0]] = patients[np.flatnonzero(hospitals == 3)[0]]
    with pytest.raises(ConfigError, match=r"partition\.shared_patients=refuse: 1 times a patient"):
        sites(hospitals=hospitals, patients=patients)
    assert len(sites("compose", hospitals=hospitals, patients=patients)) == 3
