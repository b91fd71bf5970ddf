"""What several records together, a replaced one, and one curious hospital mean for epsilon."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, norm

from medx.privacy.accountants import Event, Release, gaussian_epsilon, mixture, replacing
from medx.privacy.accounting import calibrate_noise_multiplier, epsilon_group, epsilon_replaced, epsilon_spent
from medx.privacy.base import ClientPlan, ClientRelease, PrivacyPlan, SampledGaussian, SharedNoise
from medx.privacy.executed import privacy_result
from medx.privacy.spending import Spending
from tests.privacy.examples import configured

DELTA = 1e-5


def test_at_full_batches_a_group_scales_the_sensitivity_and_a_replacement_doubles_it() -> None:
    sigma = calibrate_noise_multiplier(10.0, DELTA, 1.0, 300)
    event = (SampledGaussian(1.0, sigma, 0.1), 300)
    single = epsilon_spent([event], DELTA).value
    spent = spending(shared_plan(4, 0), [event])
    table = spent.by_group()
    assert list(table) == ["1", "2", "3", "5", "10"]
    assert table["1"] == single <= 10
    for size in (2, 3, 5, 10):
        assert table[str(size)] == pytest.approx(gaussian_epsilon(size * 300**0.5 / sigma, DELTA))
    assert spent.replaced() == pytest.approx(24.4, abs=0.15), "where 10 is logged"
    nothing = spending(shared_plan(4, 0), [])
    assert (nothing.by_group()["10"], nothing.replaced()) == (0.0, 0.0)


def spending(plan: PrivacyPlan, history: list[Event]) -> Spending:
    return Spending(plan, DELTA, [history])


def hockey_stick(high: np.ndarray, low: np.ndarray, width: float, epsilon: float) -> float:
    return float(np.maximum(high - np.exp(epsilon) * low, 0).sum() * width)


@pytest.mark.parametrize(("q", "sigma", "size"), [(0.3, 1.5, 2), (0.1, 0.8, 5)])
def test_one_sampled_step_of_a_group_is_bounded_from_above_and_closely(q: float, sigma: float, size: int) -> None:
    bound = mixture([((Release(q, sigma, 1),), size)]).get_epsilon_for_delta(DELTA)
    x = np.linspace(-12 * sigma, 12 * sigma + size, 400_001)
    width = float(x[1] - x[0])
    counts = range(size + 1)
    mixed = sum(binom.pmf(count, size, q) * norm.pdf(x, count, sigma) for count in counts)
    alone = norm.pdf(x, 0, sigma)
    spent = max(hockey_stick(mixed, alone, width, bound), hockey_stick(alone, mixed, width, bound))
    assert spent <= DELTA, "an upper bound"
    less = 0.96 * bound
    assert max(hockey_stick(mixed, alone, width, less), hockey_stick(alone, mixed, width, less)) > DELTA


@pytest.mark.parametrize("q", [0.3, 0.999999])
def test_a_replacement_under_sampling_is_bounded_from_above(q: float) -> None:
    sigma = 1.5
    bound = replacing((Release(q, sigma, 1),), DELTA)
    x = np.linspace(-14 * sigma, 14 * sigma, 400_001)
    width = float(x[1] - x[0])
    parts = [(1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, side, sigma) for side in (1, -1)]
    assert hockey_stick(*parts, width, bound) <= DELTA
    if q > 0.9:
        assert bound == pytest.approx(gaussian_epsilon(2 / sigma, DELTA), rel=0.02)


@pytest.mark.parametrize("parts", [((0.3, 1.5, 2), (0.3, 1.5, 2)), ((0.2, 1.2, 3), (0.5, 2.0, 1))])
def test_a_patients_epsilon_is_that_of_a_brute_force_convolution(parts: tuple[tuple[float, float, int], ...]) -> None:
    """Two releases of a patient's images, of one hospital twice or of two hospitals, over the whole plane."""
    bound = epsilon_group([((Release(q, sigma, 1),), size) for q, sigma, size in parts], DELTA)
    mixed, alone, width = np.ones((1, 1)), np.ones((1, 1)), 1.0
    for axis, (q, sigma, size) in enumerate(parts):
        x = np.linspace(-7.5 * sigma, 7.5 * sigma + size, 3001)
        counts = range(size + 1)
        density = sum(binom.pmf(count, size, q) * norm.pdf(x, count, sigma) for count in counts)
        shape = (-1, 1) if axis == 0 else (1, -1)
        mixed, alone = mixed * density.reshape(shape), alone * norm.pdf(x, 0, sigma).reshape(shape)
        width *= float(x[1] - x[0])

    def spent(epsilon: float) -> float:
        return max(hockey_stick(mixed, alone, width, epsilon), hockey_stick(alone, mixed, width, epsilon))

    assert spent(bound) <= DELTA, "an upper bound"
    assert spent(0.96 * bound) > DELTA, "and a close one"
    one_less = epsilon_group([((Release(q, sigma, 1),), size - (size > 1)) for q, sigma, size in parts], DELTA)
    assert spent(one_less) > DELTA, "the planted fault: an image is not counted"


def test_what_a_patient_spends_adds_up_over_hospitals() -> None:
    step = SampledGaussian(0.2, 2.0, 0.1)
    clients = tuple(ClientPlan(i, 900, 0.2, 180.0, 1, 30, step, 360.0) for i in range(2))
    where = (((0, 3),), ((0, 1), (1, 2)))
    history, release = [(step, 30)], (Release(0.2, 2.0, 30),)
    local = PrivacyPlan(configured("local_dp"), clients, DELTA, 10.0, "system", patient_images=where)
    found = Spending(local, DELTA, [history, history]).by_unit()
    both = epsilon_group([(release, 1), (release, 2)], DELTA)
    assert found["image"] == epsilon_spent(history, DELTA).value
    assert found["patient"] == max(epsilon_group([(release, 3)], DELTA), both)
    assert found["hospital"] > 100
    # In one sum the images of both hospitals add up in the same release, which is worse.
    shared = SharedNoise(2, 0, trusted_aggregator=False)
    summed = PrivacyPlan(
        configured("distributed_dp"), clients, DELTA, 10.0, "system", shared_noise=shared, patient_images=where[1:]
    )
    together = Spending(summed, DELTA, [history, history]).by_unit()["patient"]
    assert together == epsilon_group([(release, 3)], DELTA) > both
    # A hospital that dropped out hides nothing that the other released.
    for short in ([], [(step, 3)]):
        assert Spending(summed, DELTA, [short, history]).by_unit()["patient"] == together
    # One model of all records met the images of both hospitals at once: at full batches the shift adds up.
    full = SampledGaussian(1.0, 8.0, 0.1)
    whole = replace(local, clients=tuple(replace(c, step=full, sampling_probability=1.0) for c in clients))
    ones = replace(whole, patient_images=(((0, 1), (1, 1)),))
    pooled = Spending(ones, DELTA, [[(full, 30)]] * 2, [[(full, 30)]] * 2, executed=True).by_unit()["patient"]
    assert pooled >= gaussian_epsilon((30 * 2 + 30 * 4) ** 0.5 / 8, DELTA)
    unknown = Spending(replace(local, patient_images=()), DELTA, [history, history]).by_unit()
    assert list(unknown) == ["image", "hospital"]


def test_where_a_hospital_is_the_unit_a_patient_at_two_changes_two() -> None:
    event = SampledGaussian(0.5, 4.0, 1.0)
    clients = tuple(ClientPlan(i, 900, 1.0, 900.0, 1, 30, None, 1800.0) for i in range(2))
    release = ClientRelease(event, None)
    plan = PrivacyPlan(configured("central_dp"), clients, DELTA, 10.0, "system", client_release=release)
    history = [(event, 30)]
    assert list(Spending(plan, DELTA, [history, history]).by_unit()) == ["image", "hospital"]
    known = replace(plan, patient_images=(((0, 3),), ((0, 1), (1, 2))))
    found = Spending(known, DELTA, [history, history])
    assert found.by_unit()["image"] == found.by_unit()["hospital"] == epsilon_spent(history, DELTA).value
    assert found.by_unit()["patient"] == found.by_group()["2"] > found.by_unit()["image"]


@pytest.mark.parametrize("target", [40.0, 100.0])
def test_a_bound_is_a_number_whatever_the_epsilon(target: float) -> None:
    sigma = calibrate_noise_multiplier(target, DELTA, 0.2, 20)
    releases = (Release(0.2, sigma, 20),)
    assert target < epsilon_replaced(releases, DELTA) < np.inf
    assert target < epsilon_group([(releases, 5)], DELTA) < np.inf


def shared_plan(minimum: int, colluders: int) -> PrivacyPlan:
    sigma = calibrate_noise_multiplier(10.0, DELTA, 1.0, 300)
    step = SampledGaussian(1.0, sigma, 0.1)
    clients = tuple(ClientPlan(i, 900, 1.0, 900.0, 1, 300, step, 4500.0) for i in range(5))
    shared = SharedNoise(minimum, colluders, trusted_aggregator=False)
    return PrivacyPlan(configured("distributed_dp"), clients, DELTA, 10.0, "system", shared_noise=shared)


def test_one_curious_hospital_knows_its_own_share() -> None:
    plan = shared_plan(4, 0)
    step = plan.clients[0].step
    assert step is not None
    found = spending(plan, [(step, 300)]).by_observer()
    assert found["the outside"] == pytest.approx(9.98, abs=0.01)
    assert found["one other hospital"] == pytest.approx(11.92, abs=0.02)
    exact = gaussian_epsilon((4 / 3 * 300) ** 0.5 / step.noise_multiplier, DELTA)
    assert found["one other hospital"] == pytest.approx(exact, abs=0.02)
    assert found["one other hospital"] < found["all other hospitals together"]
    alone = spending(shared_plan(1, 0), [(step, 300)]).by_observer()
    assert alone["one other hospital"] == alone["all other hospitals together"], "the hospital's own share is there"


def test_the_result_and_its_statement_hold_the_table() -> None:
    result = privacy_result(shared_plan(4, 0), dict.fromkeys(range(5), 300), synthetic=False)
    assert result.epsilon_replace == pytest.approx(24.4, abs=0.15)
    assert "k = 1: 9.98, k = 2: 24.3" in result.statement
    assert "One replaced by another: 24.3" in result.statement
    assert "Towards one other hospital: epsilon 11.9" in result.statement
