"""The rounds, as the server sees them: ask clients, aggregate, average, evaluate, record, checkpoint."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import nn
from torch.func import functional_call

from medx.federation.buffered_rounds import BufferedRounds, NothingLeft
from medx.federation.checkpoint import ServerState, append_record, save_checkpoint
from medx.federation.clipped_updates import drawn_clients
from medx.federation.fedbuff import FedBuff
from medx.federation.plain_rounds import PlainRounds, RoundAborted
from medx.federation.prepared import Prepared
from medx.federation.replies import ReplyError, ask, config_of, first_of, integer_of, refuse_exhausted
from medx.federation.setup import Job, build_network, solved
from medx.federation.summed_rounds import SumRounds
from medx.metrics import evaluate
from medx.privacy.spending import epsilon_after
from medx.randomness import derive_seed, numpy_generator
from medx.results import NoiseMeasured, RoundRecord
from medx.trainer.state import ModelState, Tensors

BATCH = 512
log = logging.getLogger(__name__)


class Server:
    """One run's rounds on any Grid. ``on_round`` hears of every finished round.

    With ``on_round`` None only the last state counts: rounds are neither evaluated nor kept on disk. ``recorded`` gives
    the steps that clients have begun, never fewer than they have, from those that their answers tell of, and from
    whose ledgers it has to look at (None: all of them). ``prepared`` has the images on which models are evaluated;
    without it none is. ``speeds`` are the hospitals' by a virtual clock, in the order of clients; None: there is none.
    """

    def __init__(
        self,
        job: Job,
        recorded: Callable[[dict[int, int], Collection[int] | None], dict[int, int]],
        on_round: Callable[[RoundRecord], None] | None,
        timeout: float | None,
        prepared: Prepared | None = None,
        *,
        speeds: Sequence[float] | None = None,
    ) -> None:
        self.job = job
        self.recorded = recorded
        self.prepared = prepared
        self.on_round = on_round
        self.timeout = timeout
        self._read = False  # true once the ledgers of all clients have been looked at
        self.started = False  # true once every hospital that takes part has reserved its budget
        self.network: nn.Module = build_network(job.setup, job.declared.spec).to(job.setup.device)
        self.speeds = speeds
        self.engine = self._engine()

    def _engine(self) -> "PlainRounds | SumRounds | BufferedRounds":
        if isinstance(self.job.setup.federation, FedBuff):
            return BufferedRounds(self.job, self.timeout, self.speeds, lambda: self.recorded({}, None))
        if self.job.sums is None:
            return PlainRounds(self.job, self.timeout)
        return SumRounds(self.job, self.prepared, self.timeout)

    def noise_found(self) -> NoiseMeasured | None:
        """What the server's own noise was like, where it adds any."""
        clipped = getattr(self.engine, "clipped", None)
        return None if clipped is None else clipped.noise.found()

    def initial_state(self) -> ServerState:
        """Round 0: the seeded initial values of the trained parameters, momentum at zero."""
        setup, spec = self.job.setup, self.job.declared.spec
        trained = setup.trainer.trained_module(self.network, setup.model.objective(spec))
        state = ModelState.of(trained, momentum=self.job.keeps_momentum)
        return ServerState(0, state, state.without_momentum(), run=self.job.run_id, data=self.job.declared.dealt)

    def rounds(self, grid: Grid, server: ServerState) -> Iterator[ServerState]:
        """Rounds from where ``server`` stands to the last one; raises RoundAborted or LedgerError."""
        self.engine.restore(server)
        nodes = self.identify(grid)
        self.started = True
        known = set(server.charged)
        server.charged = dict.fromkeys(nodes, 0) | server.charged
        if self.on_round is not None and (server.round == 0 or known != set(server.charged)):
            # From here on these ledgers exist, so that a resume can tell a lost one from one that never was.
            save_checkpoint(self.job.folder / "checkpoints", server)
        if isinstance(self.engine, BufferedRounds):
            self.engine.begin(grid, nodes)
        for number in range(server.round + 1, self.job.setup.federation.updates + 1):
            if self.engine.finished:
                return
            try:
                server = self.one_round(grid, nodes, server, number)
            except NothingLeft as over:
                log.info("%s", over)
                return
            yield server

    def identify(self, grid: Grid) -> dict[int, int]:
        """Which node is which client; a client also reserves its budget here, before any data is touched.

        A budget that does not allow the run refuses it here, where nobody has spent anything yet; later its hospital
        drops out. Of two nodes that claim to be one client the first is heard.
        """
        expected = self.job.setup.num_clients
        nodes: dict[int, int] = {}

        def read(node: int, content: RecordDict) -> None:
            client = integer_of(config_of(content, "client"), "client")
            if not 0 <= client < expected or client in nodes:
                raise ReplyError(f"it claims to be client {client}; accepted: one of {expected} that is not there yet")
            nodes[client] = node

        messages = [Message(RecordDict(), node, MessageType.QUERY) for node in grid.get_node_ids()]
        asked = [message.metadata.dst_node_id for message in messages]
        _, failed = ask(grid, messages, {node: node for node in asked}, self.timeout, read)
        refuse_exhausted(len(asked), failed, 0)
        if failed:
            log.warning("%d of %d nodes did not start%s", len(failed), len(asked), first_of(failed))
        needed = min(expected, max(self.job.setup.federation.min_clients, self.engine.least))
        if len(nodes) < needed:
            raise RoundAborted(f"only {len(nodes)} of {expected} clients are there{first_of(failed)}")
        return nodes

    def one_round(self, grid: Grid, nodes: dict[int, int], server: ServerState, number: int) -> ServerState:
        """Ask and aggregate, then average, evaluate, record and checkpoint."""
        started = time.perf_counter()
        chosen = self.choose(sorted(nodes), number)
        outcome = self.engine.run(grid, {client: nodes[client] for client in chosen}, server, number)
        aggregated = time.perf_counter()
        average = self.averaged(server.average, outcome.state)
        steps = dict(server.steps)
        for client, executed in outcome.steps.items():
            steps[client] = steps.get(client, 0) + executed
        if self.job.plan.private:  # what is spent stands in the ledgers: answers know of no round that was cut off
            steps = self.recorded(steps, self.may_have_begun(chosen))
            self._read = True
        metrics = self.evaluate(average, number)
        ended = time.perf_counter()
        seconds = outcome.seconds | {"evaluate": ended - aggregated, "total": ended - started}
        if self.speeds is not None and "virtual" not in seconds:  # everybody is waited for
            before = server.records[-1].seconds.get("virtual", 0.0) if server.records else 0.0
            seconds["virtual"] = before + max(self.speeds[client] for client in chosen)
        record = RoundRecord(
            round=number,
            epsilon=epsilon_after(self.job.plan, steps),
            metrics=metrics,
            seconds=seconds,
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
            clients=outcome.clients,
            abstained=outcome.abstained,
            failed=outcome.failed,
        )
        abstentions = server.abstentions + outcome.abstained
        buffers = self.engine.buffers()
        result = ServerState(number, outcome.state, average, buffers, steps, abstentions, [*server.records, record])
        result.run, result.charged = server.run, self.charged(server.charged, outcome.answered)
        result.data = self.job.declared.dealt
        if self.on_round is not None:
            append_record(self.job.folder / "checkpoints", record)
            save_checkpoint(self.job.folder / "checkpoints", result)
            self.on_round(record)
        return result

    def may_have_begun(self, chosen: list[int]) -> list[int] | None:
        """Who may have begun something since ledgers were last looked at: where all are waited for, who was asked."""
        return chosen if self._read and self.timeout is None else None

    def charged(self, before: dict[int, int], answered: Iterable[int]) -> dict[int, int]:
        """The fewest releases that ledgers must show: one round's for each answer of a client."""
        plan, times = self.job.plan, Counter(answered)
        return {
            client: count + times[client] * plan.events_per_round(plan.clients[client])
            for client, count in before.items()
        }

    def choose(self, clients: list[int], number: int) -> list[int]:
        """The clients of a round, drawn with the seed; all of them where the fraction is one."""
        if self.job.plan.client_release is not None:
            return drawn_clients(self.job, clients, number)
        count = min(self.job.setup.federation.clients_per_round, len(clients))
        if count == len(clients):
            return clients
        generator = numpy_generator(derive_seed(self.job.setup.seed, "clients", number))
        return sorted(int(client) for client in generator.choice(clients, count, replace=False))

    def averaged(self, average: ModelState, new: ModelState) -> ModelState:
        """Exponential moving average of the iterates: post-processing, free of privacy cost."""
        trainer = self.job.setup.trainer
        decay = trainer.ema_decay**trainer.local_steps
        before, after = average.tensors(), new.parameter_tensors()
        mixed = {name: before[name].lerp(tensor, 1 - decay) for name, tensor in after.items()}
        return ModelState(new.layout, new.layout.join(mixed))

    def evaluate(self, average: ModelState, number: int) -> dict[str, float | None]:
        """Validation and test metrics, in the rounds that ask for them."""
        federation = self.job.setup.federation
        wanted = number % federation.evaluate_every == 0 or number == federation.updates or self.engine.finished
        if self.on_round is None or self.prepared is None or not wanted:
            return {}
        tensors = solved(self.job, self.network, average.tensors())
        return round_metrics(self.network, tensors, self.prepared, self.job.setup.device)


def round_metrics(module: nn.Module, state: Tensors, prepared: Prepared, device: str) -> dict[str, float | None]:
    """Metrics of both splits, on images that the server holds: ``validation/auc``, ``test/auc`` and so on."""
    metrics: dict[str, float | None] = {}
    for split in ("validation", "test"):
        predicted = predict(module, state, prepared, prepared.inputs[split], device)
        labels = prepared.labels[split].numpy()
        for name, value in evaluate(predicted.numpy(), labels, prepared.spec.task).items():
            metrics[f"{split}/{name}"] = value
    return metrics


@torch.no_grad()
def predict(module: nn.Module, state: Tensors, prepared: Prepared, inputs: torch.Tensor, device: str) -> torch.Tensor:
    """Class probabilities ``[n, num_classes]`` for any model inputs ``[n, ...]``, on the CPU, in float64."""
    module.eval()
    placed = {name: tensor.to(device) for name, tensor in state.items()}
    outputs = [functional_call(module, placed, (batch.to(device),)) for batch in inputs.split(BATCH)]
    return prepared.objective.probabilities(torch.cat(outputs).double()).cpu()
