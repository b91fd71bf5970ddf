from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from medx.aggregation.coordinator import Coordinator
from medx.aggregation.participant import Participant
from medx.aggregation.roster import Parameters, Roster, simulated_roster

MODEL = b"m" * 32


def parameters(**changes) -> Parameters:
    values = {
        "run_id": "test",
        "dimension": 17,
        "scale": 1024.0,
        "bound": 100.0,
        "num_rounds": 100_000,
        "noise_stddev": 0,
        "noise_multiplier": None,
        "clip_norm": None,
        "sampling_probability": None,
    }
    return Parameters(**(values | changes))


@dataclass
class Parties:
    """A roster, its clients, random words for each, and a count of rounds so that each one is new."""

    roster: Roster
    identities: tuple
    clients: list[Participant]
    words: dict[int, np.ndarray]
    charged: list[tuple[int, int, int]] = field(default_factory=list)
    rounds: int = 0

    def server(self, attempt: int = 0, new_round: bool = True) -> Coordinator:
        self.rounds += new_round
        return Coordinator(self.roster, self.rounds, attempt, MODEL)

    def plain_sum(self, ids) -> np.ndarray:
        return np.sum([self.words[i].astype(np.uint64) for i in ids], axis=0).astype(np.uint32)


@pytest.fixture
def make_parties() -> Callable[..., Parties]:
    def make(n: int, minimum_survivors: int | None = None, threshold: int | None = None, **changes) -> Parties:
        roster, identities = simulated_roster(parameters(**changes), n, threshold, minimum_survivors)
        charged: list[tuple[int, int, int]] = []
        clients = [
            Participant(roster, i, identities[i], on_first_unmask=lambda r, a, i=i: charged.append((i, r, a)))
            for i in range(n)
        ]
        generator = np.random.default_rng(n)
        words = {i: generator.integers(0, 2**32, roster.dimension, dtype=np.uint32) for i in range(n)}
        return Parties(roster, identities, clients, words, charged)

    return make


class Script:
    """Runs an honest round step by step, so that a test can step in between; messages are kept."""

    def __init__(self, parties: Parties, server: Coordinator) -> None:
        self.parties, self.server = parties, server
        self.n = len(parties.clients)

    def keys(self) -> bytes:
        begin = self.server.begin()
        self.key_messages = {i: c.begin(begin, MODEL) for i, c in enumerate(self.parties.clients)}
        for i, message in self.key_messages.items():
            self.server.receive_keys(i, message)
        self.key_list = self.server.close_keys()
        return self.key_list

    def shares(self) -> dict[int, bytes]:
        self.keys()
        self.share_messages = {i: c.share(self.key_list) for i, c in enumerate(self.parties.clients)}
        for i, message in self.share_messages.items():
            self.server.receive_shares(i, message)
        self.inboxes = self.server.close_shares()
        return self.inboxes

    def masked(self, without=()) -> bytes:
        self.shares()
        self.masked_messages = {}
        for i, client in enumerate(self.parties.clients):
            if i not in without:
                self.masked_messages[i] = client.mask(self.inboxes[i], self.parties.words[i].copy())
                self.server.receive_masked(i, self.masked_messages[i])
        self.survivors = self.server.close_masked()
        return self.survivors

    def confirmed(self, without=()) -> bytes:
        self.masked(without)
        self.confirm_messages = {}
        for i in self.server.survivors:
            self.confirm_messages[i] = self.parties.clients[i].confirm(self.survivors)
            self.server.receive_confirm(i, self.confirm_messages[i])
        self.request = self.server.close_confirm()
        return self.request

    def unmasked(self, without=()) -> np.ndarray:
        self.confirmed(without)
        self.unmask_messages = {}
        for i in self.server.survivors:
            self.unmask_messages[i] = self.parties.clients[i].unmask(self.request)
            self.server.receive_unmask(i, self.unmask_messages[i])
        return self.server.finish()


@pytest.fixture
def script() -> type[Script]:
    return Script
