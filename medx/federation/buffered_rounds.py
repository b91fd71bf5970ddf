"""Buffered asynchronous averaging (Nguyen et al. 2022): the server goes on when enough answers are there."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

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
from medx.trainer.state import ModelState, Tensors

log = logging.getLogger(__name__)
ANSWER_TIME = 600.0  # seconds after which a hospital elsewhere counts as silent, where nobody says otherwise


@dataclass
class Progress:
    """Where everybody stands. ``asked`` counts by client the releases that it was asked for, ``open`` what is out."""

    version: int
    asked: dict[int, int]
    open: dict[int, Asked]
    now: float = 0.0


class BufferedRounds:
    """A round is a full buffer: ``buffer_size`` answers, each by another hospital, whatever model it began from.

    A hospital is given the newest model once its answer has been used, and is asked for its next release; its plan has
    ``num_rounds`` of them, which its ledger knows. The run is over when so few have some left that no buffer fills.
    """

    def __init__(self, job: Job, timeout: float | None, speeds: Sequence[float] | None) -> None:
        federation = job.setup.federation
        assert isinstance(federation, FedBuff)
        self.job, self.federation, self.speeds = job, federation, speeds
        self.timeout = ANSWER_TIME if timeout is None else timeout
        self.least = federation.buffer_size
        self.progress = Progress(0, {}, {})
        self._out: set[int] = set()  # whose budget is spent: they are asked no more
        self._arrivals: Arrivals | None = None

    @property
    def finished(self) -> bool:
        """Whether no buffer can fill any more."""
        return bool(self.progress.asked) and self._possible() < self.federation.buffer_size

    def _possible(self) -> int:
        left = [client for client, asked in self.progress.asked.items() if asked < self.federation.num_rounds]
        return len((set(left) - self._out) | self.progress.open.keys())

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
        if self._arrivals is None:
            self._arrivals = self._begin(grid, nodes)
        newly = self._ask_the_free(nodes, server.state)
        used, abstained, failed = self._filled(number, len(nodes), server.abstentions)
        trained = time.perf_counter()
        state = self._moved(server.state, used, number)
        self.progress.version += 1
        answered = [*(each.asked.client for each in used), *abstained]
        private = self.job.plan.private
        return RoundOutcome(
            state=state,
            steps={c: self.job.plan.clients[c].steps_per_round for c in (newly if private else answered)},
            answered=frozenset(answered),
            clients=len(used),
            abstained=len(abstained),
            failed=len(failed),
            bytes_up=wire_bytes(server.state.without_momentum()) * len(answered),
            bytes_down=wire_bytes(server.state) * len(newly),
            seconds={"train": trained - started, "aggregate": time.perf_counter() - trained}
            | ({} if self._arrivals.now is None else {"virtual": self._arrivals.now}),
        )

    def _begin(self, grid: Grid, nodes: dict[int, int]) -> Arrivals:
        """Whose answers come when; what was out when the run stopped is sent again."""
        self.progress.asked = dict.fromkeys(nodes, 0) | self.progress.asked
        arrivals: Arrivals
        if self.speeds is None:
            arrivals = RealArrivals(grid, nodes, getattr(grid, "timeout", self.timeout))
        else:
            arrivals = VirtualArrivals(grid, nodes, self.progress.now)
        arrivals.ask(each for client, each in sorted(self.progress.open.items()) if client in nodes)
        self.progress.open = {client: each for client, each in self.progress.open.items() if client in nodes}
        return arrivals

    def _ask_the_free(self, nodes: dict[int, int], state: ModelState) -> list[int]:
        kept, most = self.progress, self.federation.num_rounds
        free = [c for c in sorted(nodes) if c not in kept.open and c not in self._out and kept.asked[c] < most]
        assert self._arrivals is not None
        now = self._arrivals.now or 0.0
        for client in free:
            kept.asked[client] += 1
            due = 0.0 if self.speeds is None else now + self.speeds[client]
            kept.open[client] = Asked(client, kept.asked[client], kept.version, state, due)
        self._arrivals.ask(kept.open[client] for client in free)
        return free

    def _filled(self, number: int, asked: int, before: int) -> tuple[list[Arrival], list[int], list[Failure]]:
        """A full buffer, who abstained, and who failed meanwhile; raises RoundAborted where it cannot fill."""
        used: list[Arrival] = []
        abstained: list[int] = []
        failed: list[Failure] = []
        assert self._arrivals is not None
        while len(used) < self.federation.buffer_size:
            if not self.progress.open:
                check_enough(
                    *(self.job, len(used), len(abstained), failed, number),
                    asked=asked,
                    before=before,
                    least=self.federation.buffer_size,
                )
            arrival = self._arrivals.next()
            client = arrival.asked.client
            del self.progress.open[client]
            self.progress.now = self._arrivals.now or 0.0
            if arrival.failure is not None:
                failed.append(arrival.failure)
                log.warning("round %d: client %d failed: %s", number, client, arrival.failure)
                if arrival.failure.code == Code.LEDGER:
                    self._out.add(client)
            elif arrival.state is None:
                abstained.append(client)
            else:
                used.append(arrival)
        check_enough(*(self.job, len(used), len(abstained), failed, number), asked=asked, before=before, least=0)
        return used, abstained, failed

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
