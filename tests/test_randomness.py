import numpy as np
import torch
from scipy import stats

from medx.randomness import (
    STATE_START,
    STATE_WORDS,
    derive_key,
    derive_seed,
    keyed_generator,
    system_key,
    torch_generator,
)


def words(generator: torch.Generator) -> np.ndarray:
    state = generator.get_state().numpy()[STATE_START : STATE_START + 8 * STATE_WORDS]
    return state.copy().view("<u8")


def follows_from_32_bits(drawn: np.ndarray) -> bool:
    """Words that follow from one seed obey Knuth's recurrence."""
    expected = (1812433253 * (drawn[:-1] ^ (drawn[:-1] >> np.uint64(30))) + np.arange(1, 624, dtype=np.uint64)) % 2**32
    return bool((expected == drawn[1:]).sum() > 5)


def test_the_state_lies_where_it_is_written() -> None:
    first, second = torch_generator(5), torch_generator(5)
    state = second.get_state()
    state[STATE_START] ^= 1
    second.set_state(state)
    assert (words(first) != words(second)).sum() == 1
    assert words(first).max() < 2**32


def test_a_secret_stream_has_more_than_the_32_bits_of_a_seed() -> None:
    same = (torch.randn(9, generator=torch_generator(seed)) for seed in (5, 5 + 2**32))
    assert torch.equal(*same)
    assert follows_from_32_bits(words(torch_generator(derive_seed(0, "noise"))))
    for key in (system_key(), derive_key(0, "noise")):
        assert not follows_from_32_bits(words(keyed_generator(key)))


def test_keys_differ_by_each_part_and_repeat() -> None:
    parts = [(0, "noise", 1, 2), (0, "noise", 12), (0, "noise", "1", 2), (1, "noise", 1, 2), (0, "noise", b"1", 2)]
    keys = {derive_key(*part) for part in parts}
    assert len(keys) == len(parts)
    assert all(len(key) == 32 for key in keys)
    assert derive_key(0, "noise", 1, 2) in keys
    one, again = (torch.rand(9, generator=keyed_generator(derive_key(0, "a"))) for _ in range(2))
    assert torch.equal(one, again)


def test_noise_of_the_system_is_normal_and_never_the_same() -> None:
    one, other = (torch.randn(20000, generator=keyed_generator(system_key())).numpy() for _ in range(2))
    assert stats.kstest(one, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
