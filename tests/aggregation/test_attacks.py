"""A server that lies, or a message that was touched, is refused by name and the attempt ends there."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medx.aggregation import shamir
from medx.aggregation.coordinator import Coordinator
from medx.aggregation.journal import ParticipantState
from medx.aggregation.messages import (
    Begin,
    Confirm,
    Inbox,
    KeyList,
    Keys,
    Masked,
    Shares,
    Stage,
    Survivors,
    Unmask,
    UnmaskRequest,
)
from medx.aggregation.participant import Participant
from medx.aggregation.ring import EncodingError
from medx.aggregation.roster import Roster
from medx.aggregation.wire import ProtocolError, Reason, SumAborted

from .conftest import MODEL

SERVER = "server"


def refused(step: Callable[[], object], reason: Reason, sender: int | str) -> None:
    with pytest.raises(ProtocolError) as caught:
        step()
    assert (caught.value.reason, caught.value.sender) == (reason, sender)
    assert (sender if isinstance(sender, str) else f"client {sender}") in str(caught.value)


def refused_and_wiped(client: Participant, step: Callable[[], object], reason: Reason, sender: int | str) -> None:
    refused(step, reason, sender)
    state = client.state
    assert state == ParticipantState.fresh(Stage.ENDED, state.round, state.attempt)


@pytest.fixture
def flow(make_parties, script):
    parties = make_parties(5)
    return script(parties, parties.server())


def request_of(flow, **changes) -> bytes:
    return replace(UnmaskRequest.from_bytes(flow.request, SERVER), **changes).to_bytes()


def flip(data: bytes, at: int = -1) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def test_alive_and_dropped(flow) -> None:
    flow.masked(without={4})
    client = flow.parties.clients[0]
    both = replace(Survivors.from_bytes(flow.survivors, SERVER), dropped=(3, 4)).to_bytes()
    refused_and_wiped(client, lambda: client.confirm(both), Reason.ALIVE_AND_DROPPED, SERVER)


def test_alive_and_dropped_at_unmask(flow) -> None:
    flow.confirmed(without={4})
    client = flow.parties.clients[0]
    refused_and_wiped(client, lambda: client.unmask(request_of(flow, dropped=(3, 4))), Reason.ALIVE_AND_DROPPED, SERVER)


def test_second_unmask(flow) -> None:
    flow.confirmed(without={4})
    client = flow.parties.clients[0]
    client.unmask(flow.request)
    refused(lambda: client.unmask(flow.request), Reason.SECOND_UNMASK, SERVER)
    refused(
        lambda: client.unmask(request_of(flow, survivors=(0, 1, 2, 3, 4), dropped=())), Reason.SECOND_UNMASK, SERVER
    )
    assert flow.parties.charged == [(0, 1, 0)]


def test_two_survivor_sets(flow) -> None:
    flow.masked()
    client = flow.parties.clients[0]
    client.confirm(flow.survivors)
    other = replace(Survivors.from_bytes(flow.survivors, SERVER), survivors=(0, 1, 2, 3), dropped=(4,)).to_bytes()
    refused_and_wiped(client, lambda: client.confirm(other), Reason.SURVIVOR_SETS, SERVER)


def test_another_set_at_unmask_than_confirmed(flow) -> None:
    flow.confirmed()
    client = flow.parties.clients[0]
    forged = request_of(flow, survivors=(0, 1, 2, 3), dropped=(4,))
    refused_and_wiped(client, lambda: client.unmask(forged), Reason.SURVIVOR_SETS, SERVER)


@pytest.mark.parametrize(
    ("survivors", "dropped"),
    [
        ((1, 2, 3, 4), (0,)),
        ((0, 1, 2, 3), ()),
        ((0, 1, 2, 3, 4, 4), ()),
        ((4, 3, 2, 1, 0), ()),
        ((0, 1, 2, 3, 4, 5), ()),
    ],
)
def test_sets_that_are_none(flow, survivors, dropped) -> None:
    flow.masked()
    client = flow.parties.clients[0]
    bad = replace(Survivors.from_bytes(flow.survivors, SERVER), survivors=survivors, dropped=dropped).to_bytes()
    refused_and_wiped(client, lambda: client.confirm(bad), Reason.SURVIVOR_SETS, SERVER)


def test_too_few_survivors(flow) -> None:
    flow.masked()
    client = flow.parties.clients[0]
    few = replace(Survivors.from_bytes(flow.survivors, SERVER), survivors=(0, 1, 2), dropped=(3, 4)).to_bytes()
    refused_and_wiped(client, lambda: client.confirm(few), Reason.TOO_FEW, SERVER)


def test_two_groups_told_two_sets_reach_no_threshold(flow) -> None:
    """Split view: 0, 1 hear that 4 dropped, 2, 3 that all survived; neither set gets four signatures."""
    flow.masked()
    true = Survivors.from_bytes(flow.survivors, SERVER)
    false = replace(true, survivors=(0, 1, 2, 3), dropped=(4,))
    clients = flow.parties.clients
    told = {0: false, 1: false, 2: true, 3: true, 4: true}
    signatures = {i: Confirm.from_bytes(clients[i].confirm(s.to_bytes()), i).signature for i, s in told.items()}
    mine = {i: signatures[i] for i in (0, 1)}
    request = UnmaskRequest(true.context, false.survivors, false.dropped, mine)
    refused_and_wiped(clients[0], lambda: clients[0].unmask(request.to_bytes()), Reason.MISSING_SIGNATURES, SERVER)
    all_of_them = replace(request, signatures={i: signatures[i] for i in (0, 1, 2, 3)})
    refused_and_wiped(clients[1], lambda: clients[1].unmask(all_of_them.to_bytes()), Reason.SIGNATURE, 2)


def test_missing_and_forged_confirmations(flow) -> None:
    flow.confirmed()
    signatures = UnmaskRequest.from_bytes(flow.request, SERVER).signatures
    clients = flow.parties.clients
    three = request_of(flow, signatures={i: signatures[i] for i in (0, 1, 2)})
    refused_and_wiped(clients[0], lambda: clients[0].unmask(three), Reason.MISSING_SIGNATURES, SERVER)
    borrowed = request_of(flow, signatures=signatures | {3: signatures[2]})
    refused_and_wiped(clients[1], lambda: clients[1].unmask(borrowed), Reason.SIGNATURE, 3)
    stranger = request_of(flow, signatures=signatures | {77: signatures[2]})
    refused_and_wiped(clients[2], lambda: clients[2].unmask(stranger), Reason.SENDER, SERVER)
    assert flow.parties.charged == []


def forge(flow, number: int, identity: Ed25519PrivateKey | None = None, **changes) -> bytes:
    keys = replace(Keys.from_bytes(flow.key_messages[number], number), **changes)
    if identity is not None:
        keys = replace(keys, signature=identity.sign(keys.signed_part(flow.parties.roster.run_id)))
    return keys.to_bytes()


def key_list(flow, **changes) -> bytes:
    return KeyList(flow.key_messages | {int(k[1:]): v for k, v in changes.items()}).to_bytes()


def test_substituted_and_forged_keys(flow) -> None:
    flow.keys()
    clients, stranger = flow.parties.clients, Ed25519PrivateKey.generate()
    mine = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    cases = [
        (key_list(flow, _2=forge(flow, 2, mask_key=mine)), Reason.SIGNATURE, 2),
        (key_list(flow, _2=forge(flow, 2, stranger, mask_key=mine)), Reason.SIGNATURE, 2),
        (key_list(flow, _2=flow.key_messages[3]), Reason.SENDER, 2),
        (key_list(flow, _9=forge(flow, 2, sender=9)), Reason.SENDER, 9),
    ]
    victims = [clients[i] for i in (0, 1, 3, 4)]
    for client, (message, reason, sender) in zip(victims, cases, strict=True):
        refused_and_wiped(client, lambda c=client, m=message: c.share(m), reason, sender)


def test_own_keys_changed(flow) -> None:
    flow.keys()
    client = flow.parties.clients[0]
    changed = key_list(flow, _0=forge(flow, 0, flow.parties.identities[0], seed_commitment=b"x" * 32))
    refused_and_wiped(client, lambda: client.share(changed), Reason.SUBSTITUTED_KEY, SERVER)


def test_one_key_twice_and_too_few_keys(flow) -> None:
    flow.keys()
    clients = flow.parties.clients
    key = Keys.from_bytes(flow.key_messages[3], 3).mask_key
    copied = key_list(flow, _2=forge(flow, 2, flow.parties.identities[2], mask_key=key))
    refused_and_wiped(clients[0], lambda: clients[0].share(copied), Reason.REUSED_KEY, SERVER)
    few = KeyList({i: flow.key_messages[i] for i in (1, 2, 3)}).to_bytes()
    refused_and_wiped(clients[1], lambda: clients[1].share(few), Reason.TOO_FEW, SERVER)


def test_degenerate_public_key(flow) -> None:
    flow.keys()
    client = flow.parties.clients[0]
    zero = key_list(flow, _2=forge(flow, 2, flow.parties.identities[2], cipher_key=bytes(32)))
    refused_and_wiped(client, lambda: client.share(zero), Reason.SUBSTITUTED_KEY, 2)


def test_keys_of_an_earlier_round_or_attempt(flow, script) -> None:
    flow.keys()
    for new_round in (False, True):
        server = flow.parties.server(attempt=0 if new_round else 1, new_round=new_round)
        later = script(flow.parties, server)
        later.keys()
        client = flow.parties.clients[0]
        replayed = key_list(later, _3=flow.key_messages[3])
        refused_and_wiped(client, lambda c=client, r=replayed: c.share(r), Reason.REPLAY, 3)


def test_another_model_or_roster_for_one_client(flow) -> None:
    clients, begin = flow.parties.clients, flow.server.begin()
    messages = {i: clients[i].begin(begin, MODEL) for i in range(4)}
    lie = Coordinator(flow.parties.roster, flow.server.context.round, 0, b"x" * 32).begin()
    messages[4] = clients[4].begin(lie, b"x" * 32)
    refused(lambda: flow.server.receive_keys(4, messages[4]), Reason.MODEL, 4)
    everyone = KeyList(messages).to_bytes()
    refused_and_wiped(clients[0], lambda: clients[0].share(everyone), Reason.MODEL, 4)
    refused_and_wiped(clients[4], lambda: clients[4].share(everyone), Reason.MODEL, 0)


def test_model_that_is_not_the_one_announced(flow) -> None:
    client = flow.parties.clients[0]
    refused_and_wiped(client, lambda: client.begin(flow.server.begin(), b"y" * 32), Reason.MODEL, SERVER)


def test_roster_with_a_smaller_threshold_or_another_clip(flow, make_parties) -> None:
    roster = flow.parties.roster
    client = flow.parties.clients[0]
    for changes in ({"clip_norm": 2.0}, {"minimum_survivors": 5}, {"num_rounds": 7}, {"scale": 2.0}):
        changed = Roster(**(roster.model_dump() | changes))
        server = Coordinator(changed, flow.parties.server().context.round, 0, MODEL)
        refused_and_wiped(client, lambda s=server: client.begin(s.begin(), MODEL), Reason.ROSTER, SERVER)
    with pytest.raises(ValueError, match="threshold = 2; accepted: 3 to 5 for 5 clients"):
        Roster(**(roster.model_dump() | {"threshold": 2}))
    smaller = roster.model_copy(update={"threshold": 3})
    server = Coordinator(smaller, flow.parties.server().context.round, 0, MODEL)
    refused_and_wiped(client, lambda: client.begin(server.begin(), MODEL), Reason.ROSTER, SERVER)


def test_old_rounds_and_rounds_that_were_not_planned(make_parties, script) -> None:
    parties = make_parties(3, num_rounds=2)
    script(parties, parties.server()).unmasked()
    client = parties.clients[0]
    same = Coordinator(parties.roster, 1, 0, MODEL).begin()
    refused(lambda: client.begin(same, MODEL), Reason.REPLAY, SERVER)
    refused(lambda: client.begin(Coordinator(parties.roster, 0, 2, MODEL).begin(), MODEL), Reason.REPLAY, SERVER)
    unplanned = dict.fromkeys(((2, 0), (2**62, 0), (1, 3)), Reason.POSITION)
    unplanned |= dict.fromkeys(((-1, 5), (-(2**63), 0), (1, -1)), Reason.MALFORMED)
    for position, reason in unplanned.items():
        begin = Begin(*position, parties.roster.digest, MODEL).to_bytes()
        refused(lambda b=begin: client.begin(b, MODEL), reason, SERVER)


def test_flipped_bit_replayed_and_rerouted_shares(flow, script) -> None:
    flow.shares()
    old = Inbox.from_bytes(flow.inboxes[0], SERVER).ciphertexts
    later = script(flow.parties, flow.parties.server(attempt=1, new_round=False))
    later.shares()
    clients, words = flow.parties.clients, flow.parties.words
    sealed = {i: Inbox.from_bytes(later.inboxes[i], SERVER) for i in range(5)}

    def inbox(receiver: int, **changes) -> bytes:
        mail = sealed[receiver].ciphertexts | {int(k[1:]): v for k, v in changes.items()}
        return Inbox(sealed[receiver].context, mail).to_bytes()

    flipped = inbox(1, _3=flip(sealed[1].ciphertexts[3], 20))
    refused_and_wiped(clients[1], lambda: clients[1].mask(flipped, words[1]), Reason.CIPHERTEXT, 3)
    replayed = inbox(0, _2=old[2])
    refused_and_wiped(clients[0], lambda: clients[0].mask(replayed, words[0]), Reason.CIPHERTEXT, 2)
    rerouted = inbox(2, _4=sealed[3].ciphertexts[4])
    refused_and_wiped(clients[2], lambda: clients[2].mask(rerouted, words[2]), Reason.CIPHERTEXT, 4)
    whole = flow.inboxes[3]
    refused_and_wiped(clients[3], lambda: clients[3].mask(whole, words[3]), Reason.REPLAY, SERVER)
    few = Inbox(sealed[4].context, {i: sealed[4].ciphertexts[i] for i in (0, 1)}).to_bytes()
    refused_and_wiped(clients[4], lambda: clients[4].mask(few, words[4]), Reason.TOO_FEW, SERVER)


def test_survivors_and_requests_of_another_attempt(flow, script) -> None:
    flow.confirmed()
    later = script(flow.parties, flow.parties.server(attempt=1, new_round=False))
    later.masked()
    clients = flow.parties.clients
    refused_and_wiped(clients[0], lambda: clients[0].confirm(flow.survivors), Reason.REPLAY, SERVER)
    clients[1].confirm(later.survivors)
    refused_and_wiped(clients[1], lambda: clients[1].unmask(flow.request), Reason.REPLAY, SERVER)


def test_messages_out_of_order(flow) -> None:
    flow.keys()
    client = flow.parties.clients[0]
    refused_and_wiped(client, lambda: client.unmask(b""), Reason.STAGE, SERVER)
    refused(lambda: client.share(flow.key_list), Reason.STAGE, SERVER)


def test_words_of_another_length_or_type(flow) -> None:
    flow.shares()
    client = flow.parties.clients[0]
    with pytest.raises(EncodingError, match=r"uint32 \(17,\)"):
        client.mask(flow.inboxes[0], np.zeros(17, np.int64))


def test_identity_that_is_not_in_the_roster(flow) -> None:
    refused(lambda: Participant(flow.parties.roster, 2, Ed25519PrivateKey.generate()), Reason.ROSTER, 2)


def test_server_refuses_late_doubled_foreign_and_short_messages(flow, script) -> None:
    flow.masked()
    server, first = flow.server, flow.masked_messages[0]
    refused(lambda: server.receive_masked(0, first), Reason.STAGE, 0)
    later = script(flow.parties, flow.parties.server(attempt=1, new_round=False))
    later.shares()
    refused(lambda: later.server.receive_masked(0, first), Reason.REPLAY, 0)
    message = flow.parties.clients[0].mask(later.inboxes[0], flow.parties.words[0].copy())
    refused(lambda: later.server.receive_masked(1, message), Reason.SENDER, 1)
    refused(lambda: later.server.receive_masked(0, message[:-4]), Reason.MALFORMED, 0)
    later.server.receive_masked(0, message)
    refused(lambda: later.server.receive_masked(0, message), Reason.DUPLICATE, 0)
    with pytest.raises(SumAborted, match="1 clients left after stage masked, 4 needed"):
        later.server.close_masked()
    refused(lambda: later.server.receive_masked(1, message), Reason.STAGE, 1)


def unmask(flow, false: Callable[[int, Unmask], Unmask]) -> None:
    for i in flow.server.survivors:
        message = Unmask.from_bytes(flow.parties.clients[i].unmask(flow.request), i)
        flow.server.receive_unmask(i, false(i, message).to_bytes())


def lie(message: Unmask) -> Unmask:
    seeds = {owner: hashlib.sha256(share).digest().rjust(33) for owner, share in message.seed_shares.items()}
    return replace(message, seed_shares=seeds, key_shares={o: b"\xff" * 33 for o in message.key_shares})


@pytest.mark.parametrize(
    "case",
    [(5, 4, (), {0}), (5, 4, (), {4}), (5, 3, (2,), {1}), (5, 3, (), {0, 3}), (9, 5, (8,), {0, 1, 2})],
)
def test_false_shares_are_left_out_while_enough_right_ones_are_there(make_parties, script, case) -> None:
    n, threshold, without, liars = case
    parties = make_parties(n, threshold=threshold)
    flow = script(parties, parties.server())
    flow.confirmed(without=without)
    unmask(flow, lambda i, message: lie(message) if i in liars else message)
    total = flow.server.finish()
    assert np.array_equal(total, parties.plain_sum(set(range(n)) - set(without)))
    assert set(flow.server.false_shares) == liars
    assert all(len(owners) == n for owners in flow.server.false_shares.values())  # all that it handed out


def test_with_shares_to_spare_the_one_whose_secret_fits_none_is_named(make_parties, script, monkeypatch) -> None:
    real = shamir.split
    flow = script(parties := make_parties(5), parties.server())
    flow.keys()
    secret = parties.clients[2].state.seed
    with monkeypatch.context() as patch:
        patch.setattr(shamir, "split", lambda s, t, points: real(b"x" * 32 if s == secret else s, t, points))
        flow.keys = lambda: flow.key_list
        flow.confirmed()
    unmask(flow, lambda i, message: message)
    refused(flow.server.finish, Reason.SHARE, 2)


def test_without_a_share_to_spare_nobody_is_named_wrongly(flow) -> None:
    flow.confirmed(without={4})
    unmask(flow, lambda i, message: lie(message) if i == 1 else message)
    refused(flow.server.finish, Reason.SHARE, "a client that is not known")


@pytest.mark.parametrize(
    "key", ["00", "01", "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b8", "ff" * 32]
)
def test_a_public_key_of_small_order_or_in_another_spelling_is_refused_at_stage_1(flow, key: str) -> None:
    flow.keys()
    server = Coordinator(flow.parties.roster, flow.server.context.round, 0, MODEL)
    for name in ("cipher_key", "mask_key"):
        message = forge(flow, 2, flow.parties.identities[2], **{name: bytes.fromhex(key.ljust(64, "0"))})
        refused(lambda m=message: server.receive_keys(2, m), Reason.SUBSTITUTED_KEY, 2)
    server.receive_keys(2, flow.key_messages[2])


def test_a_client_that_copies_a_key_is_refused_and_not_the_list(flow) -> None:
    flow.keys()
    server = Coordinator(flow.parties.roster, flow.server.context.round, 0, MODEL)
    key = Keys.from_bytes(flow.key_messages[3], 3).mask_key
    server.receive_keys(3, flow.key_messages[3])
    refused(
        lambda: server.receive_keys(2, forge(flow, 2, flow.parties.identities[2], mask_key=key)), Reason.REUSED_KEY, 2
    )
    twice = forge(flow, 1, flow.parties.identities[1], mask_key=(k := bytes([9]) + bytes(31)), cipher_key=k)
    refused(lambda: server.receive_keys(1, twice), Reason.REUSED_KEY, 1)


def test_fields_of_another_length_and_numbers_below_zero_are_refused(flow) -> None:
    flow.masked()
    server = Coordinator(flow.parties.roster, flow.server.context.round, 0, MODEL)
    cases = [{"round": -1}, {"attempt": -1}, {"sender": -1}, {"seed_commitment": b"x" * 31}, {"signature": b"x" * 65}]
    for changes in [*cases, {"cipher_key": b""}, {"model_hash": b"x" * 10_000}]:
        message = replace(Keys.from_bytes(flow.key_messages[2], 2), **changes).to_bytes()
        refused(lambda m=message: server.receive_keys(2, m), Reason.MALFORMED, 2)
    words = replace(Masked.from_bytes(flow.masked_messages[0], 0), words=np.zeros(10_000, np.uint32)).to_bytes()
    flow.server.stage = Stage.MASKED
    refused(lambda: flow.server.receive_masked(0, words), Reason.LENGTH, 0)


def test_server_wants_a_share_for_everybody(flow) -> None:
    flow.keys()
    message = Shares.from_bytes(flow.parties.clients[0].share(flow.key_list), 0)
    short = replace(message, ciphertexts={k: v for k, v in message.ciphertexts.items() if k != 3}).to_bytes()
    refused(lambda: flow.server.receive_shares(0, short), Reason.LENGTH, 0)
