"""The ClientApp of a hospital: it reserves its budget, trains locally, and answers with a noised update or a sum."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from medx.federation.job import Job
from medx.federation.local_client import index_of, journal_of, local_client, train_locally
from medx.federation.payload import to_record
from medx.federation.replies import Code, error_of
from medx.federation.request import model_of, round_of
from medx.federation.sum_client import STAGES, AbstainedError, answer_stage, answer_sum, sum_plan
from medx.schema import MedxError
from medx.trainer.gradients.record_loss import NonFiniteGradientError


def client_app(job: Job) -> ClientApp:
    """The ClientApp of this job; the same wherever it runs.

    It knows one way to answer, that of its own configuration: a server that asks for another one gets an error.
    """
    app = ClientApp(mods=[tell_refusal])

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        client = index_of(context)
        local_client(job, client)  # reserves the run's budget; refuses here, before any data is touched
        if job.sums is not None and sum_plan(job).roster is not None:
            journal_of(job)
        return Message(RecordDict({"client": ConfigRecord({"client": client})}), reply_to=message)

    if job.sums is None:
        _add_plain(app, job)
    elif sum_plan(job).roster is None:
        _add_trusted_sum(app, job)
    else:
        _add_secure_sum(app, job)
    return app


def tell_refusal(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A client that refuses says why in its reply, by a code; Flower's runtimes would each word it in their own way."""
    try:
        return call_next(message, context)
    except (AbstainedError, NonFiniteGradientError) as error:
        return Message(error_of(error, Code.ABSTAINED), reply_to=message)
    except MedxError as error:
        return Message(error_of(error, Code.REFUSED), reply_to=message)


def _add_plain(app: ClientApp, job: Job) -> None:
    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_train(job, index_of(context), message.content), reply_to=message)


def _add_trusted_sum(app: ClientApp, job: Job) -> None:
    @app.train("sum")
    def add(message: Message, context: Context) -> Message:
        return Message(answer_sum(job, message.content, context), reply_to=message)


def _add_secure_sum(app: ClientApp, job: Job) -> None:
    for stage in STAGES:

        @app.train(stage)
        def answer(message: Message, context: Context, stage: str = stage) -> Message:
            return Message(answer_stage(job, stage, message.content, context), reply_to=message)


def _train(job: Job, client: int, content: RecordDict) -> RecordDict:
    server_round = round_of(job, content)
    arrays = model_of(content, local_client(job, client).model)
    update = train_locally(job, client, arrays, server_round, job.setup.federation.pull)
    metrics = MetricRecord(
        {
            "num-examples": job.plan.clients[client].num_records,
            "client": client,
            "round": server_round,
            "steps": job.plan.clients[client].steps_per_round,  # not those before a gradient was not finite
            "finite": int(update.finite),
        }
    )
    return RecordDict({"arrays": to_record(update.state), "metrics": metrics})
