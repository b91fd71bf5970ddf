"""Studies that are disturbed on their way, and how they must end."""

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message, RecordDict

from medx.privacy.ledger import PrivacyLedger
from medx.results import ExperimentResult
from medx.site.conduct import conduct, run_folder
from medx.site.study import Study
from tests.site.consortium_example import (
    ROUNDS,
    SECURE,
    Example,
    Wire,
    approve,
    signed,
    wired,
)
from tests.site.soak import losses
from tests.site.test_hospital import same_model, trusting

# What was begun once is begun again as a release of its own, with other noise.
AGAIN = (*SECURE, "aggregation.max_attempts=30", "privacy.spare_rounds=60")


@dataclass(frozen=True)
class Calm:
    """A study that nothing disturbed, and where its model lies."""

    study: Study
    text: str
    folder: Path


def prepared(example: Example, study: Study) -> str:
    """The signed text of a study that all hospitals have approved."""
    trusting(example)
    approve(example, study)
    return signed(example, study)


def ended(example: Example, study: Study, result: ExperimentResult) -> None:
    """Finished, with nothing lost."""
    assert result.status == "finished", result.error
    assert losses(example, study, result, ROUNDS) == []


def ended_as(example: Example, calm: Calm, result: ExperimentResult) -> None:
    """The same, to the bit as if nothing had happened."""
    ended(example, calm.study, result)
    assert same_model(calm.folder, run_folder(example.coordinator, calm.study))


def charged(example: Example, study: Study) -> list[int]:
    """The releases that each hospital's ledger shows as begun."""
    counts = []
    for number, name in enumerate(example.names):
        path = example.kit(name) / "ledger" / f"client_{number:04d}.sqlite"
        with closing(PrivacyLedger(path, create=False)) as ledger:
            counts.append(sum(count for _, count in ledger.executed(study.run)))
    return counts


Pulled = Callable[[list[Message]], Iterable[Message]]


def disturbed(example: Example, text: str, pulled: Callable[[Wire], Pulled]) -> ExperimentResult:
    """The study with a network between that gives out what ``pulled`` makes of the answers."""
    (example.coordinator / "coordinator.yaml").write_text("patience: 0\ntimeout: 1.5\n")
    with wired(example, text) as grid:
        change, pull = pulled(grid), grid.pull_messages
        grid.pull_messages = lambda ids: list(change(list(pull(ids))))  # type: ignore[method-assign]
        return conduct(example.coordinator, text, grid)


def answer_like(reply: Message, content: RecordDict) -> Message:
    """An answer to the same message with another content."""
    other = Message(content, reply_to=Message(RecordDict(), 1, reply.metadata.message_type))
    other.metadata.__dict__.update(reply.metadata.__dict__)
    return other
