"""What a report is made of, and one part of it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from medx.figures import Picture, Shown
from medx.report.cells import Table
from medx.report.rows import Results, Run, make_frame
from medx.report.study import Study, dataset_name


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
class Material:
    """A study and its finished runs, of which every section is made."""

    study: Study
    runs: Sequence[Run]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row a run."""
        return make_frame(self.runs)

    @cached_property
    def results(self) -> Results:
        """By the runs' numbers."""
        return {run.number: run.result for run in self.runs}

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Class names by data set."""
        return {dataset_name(result.config): result.dataset.class_names for result in self.results.values()}

    def drawn(self, make: Callable[[str], Iterable[Picture]]) -> Iterator[Picture]:
        """The pictures of every data set, made when they are asked for."""
        return (picture for name in self.names for picture in make(name))
