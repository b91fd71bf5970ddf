"""Who is told how a run goes, and what of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medx.results.record import ExperimentResult, RoundRecord


@dataclass(frozen=True)
class RunContext:
    """What observers hear before the first round. ``warning`` is None, or what a reader must know of the noise."""

    title: str
    dataset: str
    run: str
    config_hash: str
    folder: Path
    config: dict[str, Any]
    num_rounds: int
    resumed: bool
    synthetic: bool
    public: bool
    warning: str | None
    statement: str
    plan_rows: list[dict[str, Any]]
    partition_rows: list[dict[str, Any]]


class Observer(Protocol):
    """Who is told how a run goes: the screen, the tracking store."""

    def on_start(self, context: RunContext) -> None:
        """Before the first round; the plan stands, nothing is trained."""
        ...

    def on_round(self, record: RoundRecord) -> None:
        """After every round."""
        ...

    def on_end(self, result: ExperimentResult) -> None:
        """With the result, whatever its status."""
        ...

    def on_error(self, error: BaseException) -> None:
        """Instead of ``on_end``, where a run that was announced ends without a result."""
        ...


class Together:
    """Several observers as one, told in their order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_start(self, context: RunContext) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_start(context)

    def on_round(self, record: RoundRecord) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_round(record)

    def on_end(self, result: ExperimentResult) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_end(result)

    def on_error(self, error: BaseException) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.on_error(error)
