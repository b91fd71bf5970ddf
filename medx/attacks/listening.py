"""What the observers of a run hear: the models, and where hospitals answer in the clear what each of them released."""

import numpy as np
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from medx.attacks.knowledge import Directions
from medx.attacks.overheard import Lies, Listener, Lying, Overheard, contents
from medx.experiment import Experiment
from medx.federation.flower import from_record
from medx.federation.hospital import Hospitals
from medx.federation.hospital_app import client_app
from medx.federation.ledgers import recorded_steps
from medx.federation.plain_rounds import RoundAborted
from medx.federation.prepared import Prepared
from medx.federation.replies import integer_of
from medx.federation.server import Server
from medx.federation.setup import Job
from medx.privacy.executed import privacy_result
from medx.privacy.residuals import Residuals
from medx.trainer.state import ModelState

SERVER, MODEL, MOMENTUM = "server", "whoever gets the model", "server, momentum"


def listen(
    experiment: Experiment, job: Job, prepared: Prepared, ears: Listener, lies: Lies | None = None
) -> float | None:
    """Run all rounds, and the epsilon that is claimed of what was executed; None where none is.

    With ``lies`` the server sends those models in place of its own.
    """
    hospitals = Hospitals(job, prepared)
    server = Server(job, hospitals.recorded, None, experiment.runtime.timeout, prepared)
    states = [server.initial_state()]

    def serve(grid: Grid) -> None:
        heard = Overheard(grid, ears.hear) if lies is None else Lying(grid, ears.hear, lies)
        for state in server.rounds(heard, states[-1]):
            ears.see(states[-1].state, state.state, state.round)
            states[:] = [state]

    try:
        experiment.runtime.run(client_app(hospitals), job.setup.num_clients, serve)
    finally:
        hospitals.close()
    if states[-1].round < job.setup.federation.num_rounds:
        raise RoundAborted(f"{states[-1].round} of {job.setup.federation.num_rounds} rounds came to an end")
    if not job.plan.private:
        return None
    return privacy_result(job.plan, recorded_steps(job, states[-1].steps), True).epsilon


class Ears:
    """Adds up, by observer and hospital (None: all), what there is of releases, in units of the weights.

    ``watched`` is whose releases are looked at one by one: the server's, of single hospitals where it sees them.
    """

    def __init__(self, job: Job, directions: Directions) -> None:
        self._job = job
        self._rate = 0.0 if job.plan.client_release else job.setup.trainer.learning_rate_for(job.plan.clients[0])
        self.sums: dict[tuple[str, int | None], np.ndarray] = {}
        self.watched = SERVER if job.sums is None else MODEL
        size = planned_size(job)
        hospitals: list[int | None] = list(range(job.setup.num_clients)) if job.sums is None else [None]
        sampled = directions.sampling < 1
        self.residuals = Residuals(directions.span(hospitals), size, sampled) if size else None

    def hear(self, question: Message, answer: Message) -> None:
        """A model that was sent, and the one that came back: what is between them is the hospital's releases."""
        if question.metadata.message_type != MessageType.TRAIN:
            return
        sent, came = (self._state(message) for message in (question, answer))
        metrics = contents(answer)["metrics"]
        client, number = (integer_of(metrics, name) for name in ("client", "round"))  # type: ignore[arg-type]
        moved = sent.parameters.astype(np.float64) - came.parameters
        if sent.momentum is not None and came.momentum is not None:
            beta = self._job.setup.trainer.momentum
            decay = beta ** self._job.plan.clients[client].steps_per_round
            moved -= beta * (1 - decay) / (1 - beta) * self._rate * sent.momentum
            self._add(MOMENTUM, client, came.momentum - decay * sent.momentum.astype(np.float64))
        self._add(SERVER, client, moved)
        if self.residuals is not None:
            self.residuals.add(number, client, moved)

    def see(self, before: ModelState, after: ModelState, number: int) -> None:
        """A round's model, which everybody gets."""
        moved = before.parameters.astype(np.float64) - after.parameters
        self._add(MODEL, None, moved)
        if self.residuals is not None and self.watched == MODEL:
            self.residuals.add(number, 0, moved)

    def _state(self, message: Message) -> ModelState:
        return from_record(contents(message).get("arrays"), self._job.layout, momentum=self._job.sends_momentum)

    def _add(self, observer: str, client: int | None, moved: np.ndarray) -> None:
        key = (observer, client)
        self.sums[key] = self.sums[key] + moved if key in self.sums else moved


def releases_of(job: Job) -> int:
    """How many releases a record, or a hospital where that is the unit, is in or may be in."""
    plan = job.plan.clients[0]
    return job.plan.planned_events(plan) if job.plan.private else plan.total_steps


def planned_shift(job: Job, observer: str) -> float | None:
    """The shift of a record in what this observer has, by the plan's noise; None where there is none."""
    event = job.plan.event_of(job.plan.clients[0])
    if event is None or event.noise_multiplier == 0:
        return None
    alone = event.sampling_probability * releases_of(job) ** 0.5 / event.noise_multiplier
    clients, shared = job.setup.num_clients, job.plan.shared_noise
    if shared is not None:  # more answer than have to
        return alone * (shared.contributors / clients) ** 0.5
    if job.plan.client_release is None and observer == MODEL:  # every hospital has noise of its own
        return alone / clients**0.5
    return alone


def planned_size(job: Job) -> float | None:
    """The noise's standard deviation on a weight in one round of what is watched; None without noise, or with momentum.

    Hospitals are alike in an audit, so the first one's is everybody's.
    """
    plan, trainer = job.plan.clients[0], job.setup.trainer
    release, shared = job.plan.client_release, job.plan.shared_noise
    more = 1.0 if shared is None else (job.setup.num_clients / shared.contributors) ** 0.5
    if release is not None:
        expected = release.event.sampling_probability * job.setup.num_clients
        return release.update_noise_multiplier * release.event.clip_norm * more / expected
    if plan.step is None or plan.step.noise_multiplier == 0 or trainer.momentum > 0:
        return None
    batch = plan.expected_batch_size if job.sums is None else plan.federation_batch_size
    steps = plan.steps_per_round**0.5
    return trainer.learning_rate_for(plan) * plan.step.noise_stddev * more * steps / batch
