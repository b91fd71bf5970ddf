"""Buffered asynchronous averaging (Nguyen et al. 2022): the server goes on when enough answers are there."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.serverapp import Grid

from medx.federation.arrivals import Arrival, Arrivals, Asked, RealArrivals, VirtualArrivals
from medx.federation.checkpoint import ServerState
from medx.federation.fedbuff import FedBuff
from medx.federation.flower import wire_bytes
from medx.federation.plain_rounds import DIVERGED, RoundAborted, RoundOutcome, check_enough
from medx.federation.replies import Code, Failure
from medx.federation.setup import Job
from medx.schema import MedxError
from medx.trainer.state import ModelState, Tensors

log = logging.getLogger(__name__)
ANSWER_TIME = 600.0  # seconds after which a hospital elsewhere counts as silent, where nobody says otherwise


class NothingLeft(MedxError):
    """Nobody has an answer of its plan left, and none has come to this round: the one before was the last."""


@dataclass
class Progress:
    """Where everybody stands. ``asked`` counts by client the releases that it was asked for, ``open`` what is out."""

    version: int
    asked: dict[int, int]
    open: dict[int, Asked]
    now: float = 0.0


@dataclass
class Filled:
    """What one buffer took: answers, who abstained and who failed, and who was asked meanwhile."""

    used: list[Arrival] = field(default_factory=list)
    abstained: list[int] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    newly: list[int] = field(default_factory=list)


class BufferedRounds:
    """A round is a full buffer: ``buffer_size`` answers, whatever models they began from.

    A hospital that has answered is given the newest model at once, and is asked for its next release; its plan has
    ``num_rounds`` of them, which its ledger knows. The run is over when fewer of those that are there have some left
    than fill a buffer, or than ``min_clients``: nobody waits for the last ones. ``begun`` tells by client how many
    releases ledgers show where a run is gone on with: none is begun twice.
    """

    def __init__(
        self,
        job: Job,
        timeout: float | None,
        speeds: Sequence[float] | None,
        begun: Callable[[], Mapping[int, int]],
    ) -> None:
        federation = job.setup.federation
        assert isinstance(federation, FedBuff)
        self.job, self.federation, self.speeds, self.begun = job, federation, speeds, begun
        self.timeout = ANSWER_TIME if timeout is None else timeout
        self.least = federation.buffer_size
        self.progress = Progress(0, {}, {})
        self._here: set[int] = set()  # who takes part: of a run that is gone on with some may have stayed away
        self._out: set[int] = set()  # whose budget is spent: they are asked no more
        self._arrivals: Arrivals | None = None

    @property
    def finished(self) -> bool:
        """Whether no buffer can fill any more; never before the first has."""
        needed = max(self.federation.buffer_size, self.federation.min_clients)
        return self.progress.version > 0 and self._possible() < needed

    def _possible(self) -> int:
        left = {client for client in self._here if self.progress.asked[client] < self.federation.num_rounds}
        return len((left - self._out) | self.progress.open.keys())

    def buffers(self) -> Tensors:
        """Who was asked how often, and what is out with whom: with it a resumed simulation is the same to the bit."""
        kept = self.progress
        clients = sorted(kept.asked)
        tensors = {
            "fedbuff/asked": torch.tensor([[client, kept.asked[client]] for client in clients], dtype=torch.int64),
            "fedbuff/clock": torch.tensor([float(kept.version), kept.now], dtype=torch.float64),
        }
        for client, asked in kept.open.items():
            where = [float(asked.number), float(asked.version), asked.due]
            tensors[f"fedbuff/open/{client}/where"] = torch.tensor(where, dtype=torch.float64)
            for place, vector in enumerate(asked.state.vectors):
                tensors[f"fedbuff/open/{client}/{place}"] = torch.from_numpy(vector.copy())
        return tensors

    def restore(self, server: ServerState) -> None:
        """The same, from a checkpoint; answers to what was out then are dropped, and it is asked for again."""
        kept = server.strategy
        if "fedbuff/asked" not in kept:
            return
        version, now = kept["fedbuff/clock"].tolist()
        asked = {int(client): int(count) for client, count in kept["fedbuff/asked"].tolist()}
        still: dict[int, Asked] = {}
        for client in asked:
            if (where := kept.get(f"fedbuff/open/{client}/where")) is not None:
                number, begun, due = where.tolist()
                names = [f"fedbuff/open/{client}/{place}" for place in range(2)]
                vectors = [kept[name].numpy() for name in names if name in kept]
                still[client] = Asked(client, int(number), int(begun), ModelState(self.job.layout, *vectors), due)
        self.progress = Progress(int(version), asked, still, now)

    def run(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> RoundOutcome:
        """Ask whoever is free, wait for a full buffer, and move the model by it."""
        started = time.perf_counter()
        assert self._arrivals is not None, "it has begun"
        found = self._filled(self._arrivals, nodes, server, number)
        trained = time.perf_counter()
        state = self._moved(server.state, found.used, number)
        self.progress.version += 1
        answered = [*(each.asked.client for each in found.used), *found.abstained]
        counted = Counter(found.newly if self.job.plan.private else answered)
        now = self._arrivals.now
        return RoundOutcome(
            state=state,
            steps={client: times * self.job.plan.clients[client].steps_per_round for client, times in counted.items()},
            answered=tuple(answered),
            clients=len(found.used),
            abstained=len(found.abstained),
            failed=len(found.failed),
            bytes_up=wire_bytes(server.state.without_momentum()) * len(answered),
            bytes_down=wire_bytes(server.state) * len(found.newly),
            seconds={"train": trained - started, "aggregate": time.perf_counter() - trained}
            | ({} if now is None else {"virtual": now}),
        )

    def begin(self, grid: Grid, nodes: dict[int, int]) -> None:
        """Whose answers come when. What was out when the run stopped is asked for again where that releases the same.

        With noise of the system it would be another release: what was begun is lost then, and spent once.
        """
        kept = self.progress
        self._here = set(nodes)
        kept.asked = dict.fromkeys(nodes, 0) | kept.asked
        again = self.job.plan.noise_source == "seed" or not self.job.plan.private
        if self.job.resumed and not again:
            for client, steps in self.begun().items():
                per_round = self.job.plan.events_per_round(self.job.plan.clients[client])
                kept.asked[client] = max(kept.asked.get(client, 0), -(-steps // per_round))
        kept.open = {client: each for client, each in kept.open.items() if again and client in nodes}
        if self.speeds is None:
            self._arrivals = RealArrivals(grid, nodes, getattr(grid, "timeout", self.timeout))
        else:
            self._arrivals = VirtualArrivals(grid, nodes, kept.now)
        if not self.finished:
            self._arrivals.ask(each for _, each in sorted(kept.open.items()))

    def _ask_the_free(self, arrivals: Arrivals, nodes: dict[int, int], state: ModelState) -> list[int]:
        kept, most = self.progress, self.federation.num_rounds
        free = [c for c in sorted(nodes) if c not in kept.open and c not in self._out and kept.asked[c] < most]
        free = arrivals.there(free, wait=not kept.open)
        now = arrivals.now or 0.0
        for client in free:
            kept.asked[client] += 1
            due = 0.0 if self.speeds is None else now + self.speeds[client]
            kept.open[client] = Asked(client, kept.asked[client], kept.version, state, due)
        arrivals.ask(kept.open[client] for client in free)
        return free

    def _filled(self, arrivals: Arrivals, nodes: dict[int, int], server: ServerState, number: int) -> "Filled":
        """A full buffer, or a run's last answers, and what came beside.

        Raises RoundAborted where there are none, and NothingLeft where that is because all plans or budgets are spent.
        """
        found = Filled()
        while len(found.used) < self.federation.buffer_size:
            if found.used and not arrivals.at_once() and self._possible() < self.federation.min_clients:
                break
            if not arrivals.at_once():  # whoever answers at the same time begins from the same model
                found.newly += self._ask_the_free(arrivals, nodes, server.state)
            if not self.progress.open:
                if self.finished and not found.used and all(each.code == Code.LEDGER for each in found.failed):
                    raise NothingLeft(f"round {number}: nobody has an answer left")
                self._check(found, server, number, len(nodes), least=self.federation.buffer_size)
            self._take(arrivals.next(), found, number)
            self.progress.now = arrivals.now or 0.0
            self._check(found, server, number, len(nodes), least=0)  # each abstention tells something: none beyond
        return found

    def _take(self, arrival: Arrival, found: "Filled", number: int) -> None:
        client = arrival.asked.client
        del self.progress.open[client]
        if arrival.failure is not None:
            found.failed.append(arrival.failure)
            log.warning("round %d: client %d failed: %s", number, client, arrival.failure)
            if arrival.failure.code == Code.LEDGER:
                self._out.add(client)
        elif arrival.state is None:
            found.abstained.append(client)
        else:
            found.used.append(arrival)

    def _check(self, found: "Filled", server: ServerState, number: int, asked: int, *, least: int) -> None:
        used, abstained = len(found.used), len(found.abstained)
        before = server.abstentions
        check_enough(self.job, used, abstained, found.failed, number, asked=asked, before=before, least=least)

    def _moved(self, state: ModelState, used: Sequence[Arrival], number: int) -> ModelState:
        """The model plus the mean change, by records, in which what began from an older model counts less.

        That is ``server_learning_rate * sum_i n_i s(age_i) (end_i - begin_i) / sum_i n_i``, where ``s(age)`` is
        ``(1 + age)^-staleness`` (Nguyen et al. 2022). The momentum is the mean of the hospitals', weighted alike.
        """
        records = np.array([self.job.plan.clients[each.asked.client].num_records for each in used], float)
        if not records.sum():
            return state
        shares = records / records.sum()
        ages = np.array([self.progress.version - each.asked.version for each in used])
        fresh = (1.0 + ages) ** -self.federation.staleness
        change = np.zeros(state.layout.size)
        momentum = None if state.momentum is None else np.zeros(state.layout.size)
        for share, weight, each in zip(shares, fresh, used, strict=True):
            assert each.state is not None
            change += share * weight * (each.state.parameters.astype(float) - each.asked.state.parameters)
            if momentum is not None and each.state.momentum is not None:
                momentum += share * weight / (shares @ fresh) * each.state.momentum
        moved = state.parameters + self.federation.server_learning_rate * change
        kind = state.parameters.dtype
        new = ModelState(state.layout, moved.astype(kind), None if momentum is None else momentum.astype(kind))
        if not new.finite:
            raise RoundAborted(f"round {number}: the aggregate is not finite ({DIVERGED})")
        return new
