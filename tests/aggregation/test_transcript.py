"""What colluders and server see of an honest client: uniform words, unless one pair's mask is missing."""

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from medx.aggregation import participant as participant_module
from medx.aggregation.keys import pair_key
from medx.aggregation.messages import Keys, Masked
from medx.aggregation.ring import apply_masks, is_positive

WORDS = 1_000_000
HONEST = (3, 4)
COLLUDERS = (0, 1, 2)


def uniform(words: np.ndarray) -> bool:
    """Chi-square over each byte and each half of the words, every one at 1e-5 two-sided."""
    for shift, bits in ((0, 8), (8, 8), (16, 8), (24, 8), (0, 16), (16, 16)):
        counts = np.bincount((words >> np.uint32(shift)) & np.uint32(2**bits - 1), minlength=2**bits)
        if not 5e-6 < stats.chisquare(counts).pvalue < 1 - 5e-6:
            return False
    return True


def residuals(make_parties, script) -> dict[int, np.ndarray]:
    """Honest clients' masked words less all that t - 1 colluders and the server know, own inputs included."""
    parties = make_parties(5, dimension=WORDS)
    assert len(COLLUDERS) == parties.roster.threshold - 1
    flow = script(parties, parties.server())
    flow.shares()
    known_keys = {i: X25519PrivateKey.from_private_bytes(parties.clients[i].state.mask_private) for i in COLLUDERS}
    opened_seeds = {i: parties.clients[i].state.seed for i in HONEST}
    context = flow.server.context.digest
    answer = {}
    for i in HONEST:
        message = Masked.from_bytes(parties.clients[i].mask(flow.inboxes[i], parties.words[i].copy()), i)
        public = Keys.from_bytes(flow.key_messages[i], i).mask_key
        added, subtracted = [opened_seeds[i]], []
        for j in COLLUDERS:
            key = pair_key(known_keys[j], public, context, i, j)
            (added if is_positive(i, j) else subtracted).append(key)
        rest = message.words - parties.words[i]
        apply_masks(rest, subtracted, added)
        answer[i] = rest
    return answer


def test_one_honest_pair_is_enough(make_parties, script) -> None:
    rest = residuals(make_parties, script)
    assert uniform(rest[3])
    assert uniform(rest[4])
    assert not np.any(rest[3] + rest[4])


def test_the_test_fails_when_the_pair_s_mask_is_left_out(make_parties, script, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_honest_pair(words, added, subtracted) -> None:
        # 3 adds its seed and the pair's key; 4 subtracts four pair keys, the last of them shared with 3.
        apply_masks(words, added[:1], subtracted[:3])

    monkeypatch.setattr(participant_module, "apply_masks", without_the_honest_pair)
    rest = residuals(make_parties, script)
    assert not uniform(rest[3])
    assert not uniform(rest[4])


def test_the_test_sees_a_slight_bias() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, WORDS, dtype=np.uint32)
    assert uniform(words)
    words[: WORDS // 50] &= np.uint32(0xFFFF7FFF)
    assert not uniform(words)


def test_words_before_unmasking_are_uniform_even_to_everybody_else(make_parties, script) -> None:
    """With n - 1 clients' keys, the self mask alone hides a vector that has not been unmasked."""
    parties = make_parties(3, dimension=WORDS)
    parties.words = {i: np.zeros(WORDS, np.uint32) for i in range(3)}
    flow = script(parties, parties.server())
    flow.shares()
    mine = parties.clients[0].state.mask_private
    peers = [Keys.from_bytes(flow.key_messages[j], j).mask_key for j in (1, 2)]
    context, private = flow.server.context.digest, X25519PrivateKey.from_private_bytes(mine)
    words = Masked.from_bytes(parties.clients[0].mask(flow.inboxes[0], parties.words[0].copy()), 0).words.copy()
    apply_masks(words, [], [pair_key(private, public, context, 0, j) for j, public in zip((1, 2), peers, strict=True)])
    assert uniform(words)
