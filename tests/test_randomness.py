import numpy as np
import torch
from scipy import stats

from medx.randomness import STATE_START, STATE_WORDS, derive_seed, system_generator, torch_generator


def words(generator: torch.Generator) -> np.ndarray:
    state = generator.get_state().numpy()[STATE_START : STATE_START + 8 * STATE_WORDS]
    return state.copy().view("<u8")


def test_the_state_lies_where_it_is_written():
    first, second = torch_generator(5), torch_generator(5)
    state = second.get_state()
    state[STATE_START] ^= 1
    second.set_state(state)
    assert (words(first) != words(second)).sum() == 1
    assert words(first).max() < 2**32


def test_noise_of_the_system_has_more_than_the_32_bits_of_a_seed():
    assert torch.equal(
        torch.randn(9, generator=torch_generator(5)), torch.randn(9, generator=torch_generator(5 + 2**32))
    )
    drawn = words(system_generator())
    # Words that follow from one seed obey Knuth's recurrence; these must not.
    recurrence = (
        1812433253 * (drawn[:-1] ^ (drawn[:-1] >> np.uint64(30))) + np.arange(1, 624, dtype=np.uint64)
    ) % 2**32
    assert (recurrence == drawn[1:]).sum() < 5
    seeded = words(torch_generator(derive_seed(0, "noise")))
    follow = (1812433253 * (seeded[:-1] ^ (seeded[:-1] >> np.uint64(30))) + np.arange(1, 624, dtype=np.uint64)) % 2**32
    assert (follow == seeded[1:]).all()


def test_noise_of_the_system_is_normal_and_never_the_same():
    one, other = (torch.randn(20000, generator=system_generator()).numpy() for _ in range(2))
    assert stats.kstest(one, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
