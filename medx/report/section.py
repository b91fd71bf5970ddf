"""What a report is made of, and one part of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from medx.figures import Picture, Shown
from medx.report.cells import Table
from medx.report.rows import Results, Run, class_count, make_frame
from medx.report.study import Study

IN_THE_STORE = "`HASH-SEED` is the run's folder in the study's store"


@dataclass(frozen=True)
class Section:
    """One part of the report. ``key`` is its anchor, ``words`` are sentences; it is left out where it has no more."""

    key: str
    title: str
    words: Iterable[str]
    tables: list[Table] = field(default_factory=list)
    pictures: Iterable[Shown] = ()
    statements: dict[str, str] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)
    always: bool = False  # even with its words alone


@dataclass(frozen=True)
class Committed:
    """What is kept of a study whose runs are elsewhere: its ``results.csv``, and the limits that its README tells."""

    frame: pd.DataFrame
    limits: list[str]


@dataclass(frozen=True)
class Material:
    """A study and its finished runs, of which every section is made; or in their place what is ``committed`` of them.

    ``where`` says in which folder a run lies.
    """

    study: Study
    runs: Sequence[Run]
    committed: Committed | None = None
    where: str = IN_THE_STORE

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a run."""
        return make_frame(self.runs) if self.committed is None else self.committed.frame

    @cached_property
    def results(self) -> Results:
        """By the runs' numbers."""
        return {run.number: run.result for run in self.runs}

    @cached_property
    def known(self) -> pd.DataFrame:
        """The rows whose results are at hand, with rounds, hospitals and curves: all of them, or none."""
        return self.frame[self.frame["run"].isin(list(self.results))]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Class names by data set; their numbers where the runs are elsewhere."""
        found = {}
        for dataset, rows in self.frame.groupby("dataset", sort=False):
            result = self.results.get(int(rows["run"].iloc[0]))
            numbered = [f"class {index}" for index in range(class_count(rows))]
            found[str(dataset)] = numbered if result is None else result.dataset.class_names
        return found

    def drawn(self, make: Callable[[str], Iterable[Picture]]) -> Iterator[Picture]:
        """The pictures of every data set, made when they are asked for."""
        return (picture for name in self.names for picture in make(name))
