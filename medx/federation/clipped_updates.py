"""The server's side of ``privacy=central_dp``: who is drawn, the noise on the sum, the clip norm, the ledger."""

import hashlib
import math
import weakref
from dataclasses import replace

import numpy as np
import torch

from medx.aggregation.integer_noise import add_discrete_gaussian
from medx.federation.exchange import Attempt
from medx.federation.flower import wire_bytes
from medx.federation.ledgers import open_server_ledger, server_keeps
from medx.federation.plain_rounds import RoundOutcome
from medx.federation.prepared import Prepared
from medx.federation.setup import Job, secret_key
from medx.federation.sums import SMALL, ledger_entry, noise_stream, sum_plan
from medx.privacy.ledger import PrivacyLedger
from medx.privacy.noise_health import NoiseHealth
from medx.randomness import numpy_generator
from medx.trainer.state import Tensors

CLIP_NORM = "clipped_updates/clip_norm"
SERVER = "server"


class ClippedUpdates:
    """What the rounds of client-level privacy add to a sum (McMahan et al. 2018; Andrew et al. 2021).

    The denominator is the public expected number of clients, whoever was drawn.
    """

    def __init__(self, job: Job, prepared: Prepared | None) -> None:
        release = job.plan.client_release
        assert release is not None
        self.job = job
        self.prepared = prepared
        self.plan = sum_plan(job)
        self.release = release
        self.clip_norm = release.event.clip_norm
        self.expected = release.event.sampling_probability * job.setup.num_clients
        self._ledger: PrivacyLedger | None = None
        self.noise = NoiseHealth()
        self._attempts = 0
        self._bytes_down = 0

    def buffers(self) -> Tensors:
        """The clip norm of the next round."""
        return {CLIP_NORM: torch.tensor(self.clip_norm, dtype=torch.float64)}

    def restore(self, buffers: Tensors) -> None:
        """Put it back, and reserve the run in the server's ledger, where clients have none of their own."""
        if CLIP_NORM in buffers:
            self.clip_norm = float(buffers[CLIP_NORM])
        if server_keeps(self.job):
            self._ledger = open_server_ledger(self.job, self.prepared)
            weakref.finalize(self, self._ledger.close)

    def begin(self, attempt: Attempt) -> None:
        """Count the attempt. Under secure aggregation the clients enter it, each in a ledger of its own."""
        self._attempts = 1 if attempt.position.attempt == 0 else self._attempts + 1
        self._bytes_down = wire_bytes(attempt.state)

    def add_noise(self, total: np.ndarray, attempt: Attempt) -> None:
        """A trusted server's noise on the sum, in place; under secure aggregation the clients have added theirs."""
        position, state = attempt.position, attempt.state
        if not self.plan.server_noise_stddev:
            return
        # Keyed by the sum itself: other survivors or another clip norm are another sum, and have another noise. So it
        # is entered by it too, and before it is noised: a round done again with another sum is another release.
        digest = hashlib.sha256(total.tobytes()).digest()
        if server_keeps(self.job):
            assert self._ledger is not None
            entry, model = ledger_entry(self.job, position), state.hash(self.clip_norm)
            release = secret_key(self.job, "release", SERVER, entry, model, digest)
            self._ledger.begin_round(self.job.run_id, entry, 1, release=release)
        heard = self.noise.of(position.round, 0)
        stream = noise_stream(self.job, SERVER, position, state.hash(), digest, heard=heard)
        add_discrete_gaussian(total, stream, self.plan.server_noise_stddev)
        if server_keeps(self.job):
            assert self._ledger is not None
            self._ledger.commit_round(self.job.run_id, entry)

    def mean(self, vector: np.ndarray, scalars: dict[str, float]) -> np.ndarray:
        """The mean update from the noised sum in units of the clip norm, which then moves towards its quantile."""
        update = vector * (self.clip_norm / self.expected)
        quantile = self.release.quantile
        if quantile is not None:
            small = min(max(0.5 + scalars[SMALL] / self.expected, 0.0), 1.0)
            self.clip_norm *= math.exp(-quantile.learning_rate * (small - quantile.target))
        return update

    def steps(self) -> dict[int, int]:
        """By a trusted server's ledger every attempt of the round is a release for every client, drawn or not."""
        return {client.client: self._attempts for client in self.job.plan.clients}

    def published(self, outcome: RoundOutcome) -> RoundOutcome:
        """The outcome with expected counts in place of drawn ones: the amplification rests on who was drawn."""
        if self.release.event.sampling_probability == 1:
            return outcome
        return replace(
            outcome,
            answered=tuple(self.steps()),
            clients=round(self.expected),
            bytes_up=round(self.expected * 4 * self.plan.layout.size),
            bytes_down=round(self.expected * self._bytes_down),
        )


def drawn_clients(job: Job, clients: list[int], number: int) -> list[int]:
    """Each client on its own coin (Poisson); the coins are secret where the noise is."""
    assert job.plan.client_release is not None
    q = job.plan.client_release.event.sampling_probability
    generator = numpy_generator(int.from_bytes(secret_key(job, "clients", number), "little"))
    return [client for client, coin in zip(clients, generator.random(len(clients)), strict=True) if coin < q]
