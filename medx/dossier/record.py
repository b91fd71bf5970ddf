"""A dossier as a record: what the page shows, for programs. ``schema.json`` is made of these classes."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medx.dossier.subject import Subject
from medx.report.cells import Table, markdown

SCHEMA = Path(__file__).parent / "schema.json"
Rule = Callable[[Subject], str | None]
# Topics of TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378), of the items that chapters belong to.
TRIPOD_AI = {
    "3b": "Background", "5a": "Data", "6a": "Participants", "12a": "Analytical methods", "12c": "Analytical methods",
    "12e": "Analytical methods", "15": "Model output", "18f": "Code sharing", "20b": "Participants",
    "21": "Model development", "22": "Model specification", "23a": "Model performance", "23b": "Model performance",
    "26": "Limitations",
}  # fmt: skip


def items(*numbers: str) -> list[str]:
    """Items of TRIPOD+AI by number and topic."""
    return [f"{number} {TRIPOD_AI[number]}" for number in numbers]


class Part(BaseModel):
    """Base of all parts: unknown fields are an error."""

    model_config = ConfigDict(extra="forbid")


class Sentence(Part):
    """A sentence that is true of this run; ``key`` is the condition that it stands for."""

    key: str
    text: str


class Standards(Part):
    """Where a chapter's matter belongs in what others ask for, by their own names; empty where they have none.

    Sections of the model card (Mitchell et al. 2019), items of TRIPOD+AI by number and topic (Collins et al. 2024), and
    terms of NIST SP 800-226 (Near et al. 2025): components of its pyramid, or titles of its sections.
    """

    model_card: list[str] = Field(default_factory=list)
    tripod_ai: list[str] = Field(default_factory=list)
    nist_sp_800_226: list[str] = Field(default_factory=list)

    @property
    def line(self) -> str:
        """For a reader."""
        told = {"model card": self.model_card, "TRIPOD+AI": self.tripod_ai, "NIST SP 800-226": self.nist_sp_800_226}
        return "; ".join(f"{name}: {', '.join(items)}" for name, items in told.items() if items)


class Tabled(Part):
    """A table as it is shown (``header``, ``rows``), and its numbers (``records``)."""

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    records: list[dict[str, str | float | int | bool | None]]

    @classmethod
    def of(cls, table: Table) -> "Tabled":
        """A report's table."""
        records = json.loads(table.data.to_json(orient="records", double_precision=15))
        return cls(
            name=table.name, title=table.title, note=table.note, header=table.header, rows=table.rows, records=records
        )

    @property
    def markdown(self) -> str:
        """As lines of Markdown."""
        return markdown(self.header, self.rows)


class Chapter(Part):
    """One part of a run's dossier."""

    key: str
    title: str
    standards: Standards
    sentences: list[Sentence]
    tables: list[Tabled]
    statements: dict[str, str] = Field(default_factory=dict)


class RunDossier(Part):
    """One run. ``first`` is what a reader must know before all else; empty where there is nothing of that kind."""

    number: int
    name: str
    run: str | None
    view: Literal["owner", "released"]
    answer: list[Sentence] = Field(min_length=3, max_length=3)
    first: list[Sentence]
    chapters: list[Chapter]


class Dossier(Part):
    """The dossier of one run or of several; ``together`` is what holds of all of them."""

    format: Literal["medx dossier 1"] = "medx dossier 1"
    made: str
    medx: str
    view: Literal["owner", "released"]
    together: list[Sentence]
    runs: list[RunDossier] = Field(min_length=1)


def told(chapter: str, rules: Sequence[Rule], run: Subject) -> list[Sentence]:
    """The sentences of those rules whose condition holds of the run."""
    said = ((f"{chapter}.{rule.__name__.strip('_')}", rule(run)) for rule in rules)
    return [Sentence(key=key, text=text) for key, text in said if text is not None]


def schema() -> dict[str, Any]:
    """The JSON schema of a dossier."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Dossier.model_json_schema()}
