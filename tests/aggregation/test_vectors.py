"""Published vectors for every primitive, through the functions that the protocol calls."""

import hashlib
import hmac
import itertools

import numpy as np
import pytest
from Crypto.Util.number import isPrime
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medx.aggregation import keys, ring, shamir
from medx.aggregation.keys import verified
from medx.aggregation.messages import Confirm, Context, Inbox, Masked, UnmaskRequest
from medx.aggregation.wire import ProtocolError, Reason


def test_chacha20_rfc8439_a1() -> None:
    first = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )
    assert ring.keystream(bytes(32)).update(bytes(64)) == first


def hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    key = hmac.digest(bytes(32), secret, "sha256")
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def test_hkdf_rfc5869_case_3_and_our_info() -> None:
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert hkdf(b"\x0b" * 22, b"", 42).hex() == expected
    info = b"medx secure aggregation v1\x00mask" + b"c" * 32 + bytes([0, 0, 0, 1, 0, 0, 0, 2])
    assert keys.derive_key(b"s" * 32, "mask", b"c" * 32, 1, 2) == hkdf(b"s" * 32, info, 32)


def test_x25519_rfc7748_and_a_key_for_one_pair() -> None:
    bob = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    shared = bob.exchange(X25519PublicKey.from_public_bytes(alice))
    assert shared.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert keys.pair_key(bob, alice, b"c", 7, 2) == keys.derive_key(shared, "mask", b"c", 2, 7)
    assert keys.pair_key(bob, alice, b"d", 7, 2) != keys.pair_key(bob, alice, b"c", 7, 2)
    with pytest.raises(ProtocolError) as caught:
        keys.pair_key(bob, bytes(32), b"c", 7, 2)
    assert (caught.value.reason, caught.value.sender) == (Reason.SUBSTITUTED_KEY, 2)


def test_ed25519_rfc8032_test_1() -> None:
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert verified(public, b"", signature)
    assert not verified(public, b"x", signature)
    assert not verified(b"short", b"", signature)


def test_aes_256_gcm_case_14() -> None:
    sealed = AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), b"")
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_shamir_worked_example_and_every_subset() -> None:
    # Secret 1234 with 166 x + 94 x^2: the worked example of Wikipedia's article, in a field too large to wrap.
    shares = shamir.evaluate([1234, 166, 94], range(1, 7))
    assert [int.from_bytes(s, "big") for s in shares.values()] == [1494, 1942, 2578, 3402, 4414, 5614]
    assert int.from_bytes(shamir.combine({p: shares[p] for p in (2, 4, 5)}), "big") == 1234
    assert isPrime(shamir.PRIME)
    secret = b"\xff" * 32
    shares = shamir.split(secret, 4, range(1, 6))
    for chosen in itertools.combinations(shares, 4):
        assert shamir.combine({p: shares[p] for p in chosen}) == secret
    assert shamir.recover(shares, 4, lambda found: found == secret) == (secret, ())
    with pytest.raises(ValueError, match="one 32-byte"):
        shamir.combine(shamir.evaluate([2**256 + 1, 5], [1, 2]))


@pytest.mark.parametrize(("n", "threshold", "liars"), [(4, 4, 0), (5, 4, 1), (7, 4, 3), (20, 14, 3), (100, 67, 16)])
def test_right_shares_are_found_among_wrong_ones(n: int, threshold: int, liars: int) -> None:
    """The last two are more than sets of shares could be tried: they are decoded."""
    secret = bytes(range(32))
    shares = shamir.split(secret, threshold, range(1, n + 1))
    wrong = tuple(range(2, 2 + liars))
    for point in wrong:
        shares[point] = hashlib.sha256(shares[point]).digest().rjust(33, b"\0")
    assert shamir.recover(shares, threshold, lambda found: found == secret) == (secret, wrong)
    if n - threshold >= 2 * liars:
        assert shamir.agreeing(shares, threshold) == tuple(sorted(set(shares) - set(wrong)))
    shares |= {point: b"\xff" * 33 for point in range(1, n - threshold + 2)}  # one too many
    assert shamir.recover(shares, threshold, lambda found: found == secret) is None


def test_shares_below_the_threshold_fit_every_secret() -> None:
    shares = shamir.split(b"a" * 32, 3, [1, 2, 3])
    forged = int.from_bytes(b"another secret, also 32 bytes ok", "big")
    weights = shamir.lagrange_at_zero((1, 2, 3))
    known = sum(w * int.from_bytes(shares[p], "big") for w, p in zip(weights[:2], (1, 2), strict=True))
    third = (forged - known) * pow(weights[2], -1, shamir.PRIME) % shamir.PRIME
    assert int.from_bytes(shamir.combine({1: shares[1], 2: shares[2], 3: third.to_bytes(33, "big")}), "big") == forged


def stream_words(key: bytes, count: int) -> np.ndarray:
    return np.frombuffer(ring.keystream(key).update(bytes(4 * count)), dtype="<u4")


def test_masks_cancel_and_equal_the_keystream_across_blocks() -> None:
    size = 2 * ring.BLOCK + 5
    words = np.arange(size, dtype=np.uint32)
    one, two = b"1" * 32, b"2" * 32
    masked = words.copy()
    ring.apply_masks(masked, [one], [two])
    expected = words + stream_words(one, size) - stream_words(two, size)
    assert np.array_equal(masked, expected)
    ring.apply_masks(masked, [two], [one])
    assert np.array_equal(masked, words)


def test_message_bytes_are_pinned_and_strict() -> None:
    context, signature = b"x" * 32, b"s" * 64
    data = Confirm(1, context, signature).to_bytes()
    assert data.hex() == "434f4e46" + "0100000000000000" + "20000000" + "78" * 32 + "40000000" + "73" * 64
    request = UnmaskRequest(context, (0, 2), (1,), {0: signature, 2: signature})
    assert UnmaskRequest.from_bytes(request.to_bytes(), "server") == request
    masked = Masked.from_bytes(Masked(3, context, np.arange(5, dtype=np.uint32)).to_bytes(), 3)
    assert masked.words.tolist() == [0, 1, 2, 3, 4]
    one = Inbox(context, {1: b"a" * 94}).to_bytes()
    doubled = one[:40] + b"\x02\x00\x00\x00" + 2 * one[44:]
    for bad in (
        data[:-1],
        data + b"\x00",
        b"KEYS" + data[4:],
        b"",
        data[:9],
        doubled,
        Inbox(context, {1: b"a" * 95}).to_bytes(),
        Confirm(-1, context, signature).to_bytes(),
        Confirm(1, context + b"x", signature).to_bytes(),
        Confirm(1, context, signature[:-1]).to_bytes(),
    ):
        with pytest.raises(ProtocolError) as caught:
            (Inbox if bad.startswith(b"INBX") else Confirm).from_bytes(bad, 9)
        assert caught.value.reason == Reason.MALFORMED
        assert "client 9" in str(caught.value)


def test_context_binds_every_field() -> None:
    base = {"run_id": "r", "round": 1, "attempt": 2, "roster_hash": b"a" * 32, "model_hash": b"b" * 32}
    assert (
        Context(**base).digest
        == hashlib.sha256(
            b"medx context v1" + b"".join(v.to_bytes(8, "big") for v in (1, 1, 2)) + b"r" + b"a" * 32 + b"b" * 32
        ).digest()
    )
    changes = [{"run_id": "s"}, {"round": 2}, {"attempt": 1}, {"roster_hash": b"c" * 32}, {"model_hash": b"a" * 32}]
    assert len({Context(**(base | change)).digest for change in [{}, *changes]}) == 6
