"""Bounds against other code and known figures, and evidence of releases whose shift and noise are set here."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant

from medx.attacks.audit import REFUTED, Finding
from medx.attacks.evidence import Evidence, Knowledge, gaussian_epsilon, one_run_epsilon, together, weigh
from medx.privacy.residuals import Residuals

DIMENSION = 600


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_the_epsilon_of_a_shift_is_the_gaussian_mechanisms(shift: float) -> None:
    accountant = pld_privacy_accountant.PLDAccountant()
    accountant.compose(dp_event.GaussianDpEvent(1 / shift))
    assert gaussian_epsilon(shift, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3, abs=2e-3)


def test_no_shift_proves_nothing() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0 == gaussian_epsilon(1e-6, 1e-5)
    assert one_run_epsilon(50, 100, 100, 1e-5) == 0


def test_guesses_of_one_run_have_the_ceilings_that_are_known() -> None:
    """ln(.95 ** (1 / n) / (1 - .95 ** (1 / n))) at delta 0, and less with delta."""
    for guesses in (100, 1000):
        chance = 0.05 ** (1 / guesses)
        assert one_run_epsilon(guesses, guesses, guesses, 0.0) == pytest.approx(
            math.log(chance / (1 - chance)), abs=1e-3
        )
        assert one_run_epsilon(guesses, guesses, guesses, 1e-5) < one_run_epsilon(guesses, guesses, guesses, 0.0)
    # Randomised response with epsilon 1, at the likeliest count.
    right = round(1000 / (1 + math.exp(-1)))
    assert 0.8 < one_run_epsilon(right, 1000, 1000, 0.0) < 1


def release_of(generator: np.random.Generator, shift: float, *, sampling: float = 1.0, steps: int = 40):
    """A release of 80 canaries by coins, 120 others and blanks under unit noise, and what is known."""
    rows = generator.standard_normal((201, DIMENSION)) + generator.standard_normal(DIMENSION)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    canaries, others, blanks = rows[:80], rows[80:200], rows[200:]
    coins = generator.random(80) < 0.5
    counts = generator.binomial(steps, sampling, 200) / (steps * sampling)
    there = np.where(coins[:, None], canaries, blanks)
    total = shift * (counts[:80] @ there + counts[80:] @ others)
    known = Knowledge(canaries, others, blanks, sampling, steps)
    return 7.0 * (total + generator.standard_normal(DIMENSION)), coins, known  # in whatever unit


@pytest.mark.parametrize("sampling", [1.0, 0.1])
@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_evidence_finds_the_shift_with_the_error_that_it_says(shift: float, sampling: float) -> None:
    generator = np.random.default_rng(5)
    found = [weigh(*release_of(generator, shift, sampling=sampling), expected=1.0) for _ in range(60)]
    scores = [(each.shift - shift) / each.error for each in found]
    assert abs(np.mean(scores)) < 3.5 / math.sqrt(60)
    assert 0.75 < np.std(scores) < 1.3  # a fifth of 60 draws, at 99.9 %
    whole = together(found)
    assert abs(whole.shift - shift) < 4 * whole.error < found[0].error


def test_a_wrong_claim_of_the_error_would_be_noticed() -> None:
    """The same trial with errors of two thirds, or three halves, ends outside of the interval above."""
    generator = np.random.default_rng(5)
    found = [weigh(*release_of(generator, 2.0), expected=1.0) for _ in range(60)]
    spread = np.std([(each.shift - 2.0) / each.error for each in found])
    assert not 0.75 < spread * 3 / 2 < 1.3
    assert not 0.75 < spread * 2 / 3 < 1.3


def test_coins_that_are_not_the_run_s_show_nothing() -> None:
    generator = np.random.default_rng(6)
    release, coins, known = release_of(generator, 2.0)
    found = weigh(release, generator.random(80) < 0.5, known, expected=1.0)
    assert found.at_least() < 0.5 < weigh(release, coins, known, expected=1.0).at_least()


def residuals(*, size: float = 1.0, same_rounds: float = 0.0, same_hospitals: float = 0.0, rounds: int = 5):
    """Of two hospitals, whose noise has parts in common."""
    generator = np.random.default_rng(7)
    known = np.linalg.qr(generator.standard_normal((DIMENSION, 2)))[0].T
    parts = Residuals(known, 1.0, sampled=False)
    of_rounds = generator.standard_normal((2, DIMENSION))
    for number in range(1, rounds + 1):
        of_hospitals = generator.standard_normal(DIMENSION)
        for hospital in range(2):
            own = generator.standard_normal(DIMENSION)
            noise = size * (own + same_rounds * of_rounds[hospital] + same_hospitals * of_hospitals)
            noise /= math.sqrt(1 + same_rounds**2 + same_hospitals**2)
            parts.add(number, hospital, 100 * known[0] + noise)  # what is known does not count
    return parts.found()


def test_residuals_tell_noise_as_planned_from_all_other() -> None:
    assert residuals().doubts == []
    assert "less noise than planned" in residuals(size=0.85).doubts[0]
    assert "does not add up" in residuals(size=1.15).doubts[0]
    (rounds,), (hospitals,) = residuals(same_rounds=0.3).doubts, residuals(same_hospitals=0.4).doubts
    assert "of rounds is correlated" in rounds
    assert "of hospitals is correlated" in hospitals
    assert residuals(rounds=1).rounds is None


def test_evidence_adds_up_by_what_it_knows() -> None:
    weak, strong = Evidence(1.0, 1.0, 1.0, 10, 3, 4), Evidence(2.0, 0.1, 100.0, 10, 4, 4)
    whole = together([weak, strong])
    assert whole.shift == pytest.approx(201 / 101)
    assert whole.error == pytest.approx(101**-0.5)
    assert (whole.canaries, whole.right, whole.guessed) == (20, 7, 8)


def test_chance_speaks_against_no_claim_and_a_fault_does() -> None:
    """Noise as planned comes near the claim, so that one bound in twenty at 95 % is above it."""
    error, claimed = 0.1, gaussian_epsilon(0.27, 1e-5)

    def found(shift: float, right: int = 70) -> Finding:
        return Finding("server", claimed, 1e-5, 0.27, Evidence(shift, error, error**-2, 400, right, 133), [], 0.0)

    chance, fault, guessed = found(0.27 + 1.9 * error), found(0.27 + 4.6 * error), found(0.27, right=133)
    assert chance.found > claimed
    assert not chance.refutes
    assert chance.result().against == []
    assert not found(0.27 + 4.4 * error).refutes
    assert fault.refutes
    assert REFUTED in fault.result().against
    assert guessed.refutes
