"""The ClientApp of a hospital: it reserves its budget, trains locally, and answers with a noised update or a sum."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from medx.federation.flower import to_record
from medx.federation.hospital import Hospital, Hospitals, data_of, model_of, position_of, round_of
from medx.federation.hospital_sums import answer_stage, answer_sum
from medx.federation.replies import AbstainedError, Code, error_of
from medx.federation.sums import STAGES
from medx.schema import MedxError
from medx.trainer.gradients.record_loss import NonFiniteGradientError


def client_app(hospitals: Hospitals, client: int | None = None) -> ClientApp:
    """The ClientApp of these hospitals; the same wherever it runs.

    ``client`` is the one that answers, None the one that the node's configuration names, as a simulation's does. It
    knows one way to answer, that of its own configuration: a server that asks for another one gets an error.
    """
    app, job = ClientApp(mods=[tell_refusal]), hospitals.job

    def asked(context: Context) -> Hospital:
        return hospitals.hospital(int(context.node_config["partition-id"]) if client is None else client)

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        hospital = asked(context)  # reserves the run's budget; refuses here, before any data is touched
        if job.sums is not None and job.sums.roster is not None:
            hospitals.journal()
        return Message(RecordDict({"client": ConfigRecord({"client": hospital.client})}), reply_to=message)

    if job.sums is None:

        @app.train()
        def train(message: Message, context: Context) -> Message:
            number = round_of(job, message.content)
            return Message(_train(asked(context), message.content, number), reply_to=message)

    elif job.sums.roster is None:

        @app.train("sum")
        def add(message: Message, context: Context) -> Message:
            position = position_of(job, message.content)
            return Message(answer_sum(asked(context), message.content, position), reply_to=message)

    else:
        for stage in STAGES:

            @app.train(stage)
            def answer(message: Message, context: Context, stage: str = stage) -> Message:
                data_of(message.content)
                content = answer_stage(asked(context), stage, message.content, context)
                return Message(content, reply_to=message)

    return app


def tell_refusal(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """A client that refuses says why in its reply, by a code; Flower's runtimes would each word it in their own way."""
    try:
        return call_next(message, context)
    except (AbstainedError, NonFiniteGradientError) as error:
        return Message(error_of(error, Code.ABSTAINED), reply_to=message)
    except MedxError as error:
        return Message(error_of(error, Code.REFUSED), reply_to=message)


def _train(hospital: Hospital, content: RecordDict, number: int) -> RecordDict:
    update = hospital.train(model_of(hospital.job, content), number)
    metrics = MetricRecord(
        {
            "num-examples": hospital.plan.num_records,
            "client": hospital.client,
            "round": number,
            "steps": hospital.plan.steps_per_round,  # not those before a gradient was not finite
            "finite": int(update.finite),
        }
    )
    return RecordDict({"arrays": to_record(update.state), "metrics": metrics})
