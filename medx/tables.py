"""Tables that fit their width: a number is never cut, a column that finds no room stands above the table or is named.

On a terminal they are drawn by rich; elsewhere they are lines of plain ASCII.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from medx.output import plain_text

GAP = 2  # spaces between plain columns
FRAME = 3  # letters that a column's border and padding take on a terminal


@dataclass(frozen=True)
class Table:
    """Text in columns; ``rows`` are as long as ``headers``. ``need`` names the columns that may go, least needed first.

    Columns from ``numbered`` on are called 0, 1, ... where their names find no room. ``above`` stands over the table.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    need: tuple[str, ...] = ()
    numbered: int | None = None
    above: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], need: Sequence[str] = (), numbered: int | None = None) -> "Table":
        """The table of rows that may lack keys; what is not in ``need`` may go from the last column on."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        texts = tuple(tuple(_text(row.get(name)) for name in names) for row in rows)
        headers = tuple(name.replace("_", " ") for name in names)
        order = [*(name for name in need if name in headers), *(n for n in reversed(headers[1:]) if n not in need)]
        return cls(headers, texts, tuple(order), numbered)

    def fitted(self, width: int, between: int, around: int = 0) -> "Table":
        """The table in ``width`` letters, of which ``between`` part two columns and ``around`` are its edges.

        Columns without any text go first; then, until it fits, those that are the same in every row, whose value then
        stands above; then those that are least needed, whose names stand above.
        """
        table = self._without([name for name in self.need if not any(self._column(name))])
        if table.numbered is not None and table._width(between) + around > width:
            return table._with_numbers(table.numbered).fitted(width, between, around)
        same = [name for name in table.need if len(set(table._column(name))) == 1]
        above: list[str] = []
        missing: list[str] = []
        for name in [*same, *(name for name in table.need if name not in same)]:
            if table._width(between) + around <= width:
                break
            if name in same:
                value = table._column(name)[0]
                above[:0] = [] if value == "-" else [f"{name} {value}".strip()]
            else:
                missing.insert(0, name)
            table = table._without([name])
        told = (", ".join(above), f"no room here for: {', '.join(missing)}" if missing else "")
        return replace(table, above=(*table.above, *(text for text in told if text)))

    def plain(self, width: int) -> list[str]:
        """Lines of plain ASCII."""
        fit = replace(self, rows=tuple(tuple(map(plain_text, row)) for row in self.rows)).fitted(width, GAP)
        lines = [[plain_text(cell) for cell in line] for line in (fit.headers, *fit.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        gap = " " * GAP
        table = [gap.join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)).rstrip() for line in lines]
        return [*(part for text in fit.above for part in wrap(plain_text(text), width)), *table]

    def draw(self, console: Console, title: str) -> None:
        """Print it on a terminal under its title."""
        fit = self.fitted(console.width, FRAME, around=1 + FRAME)
        drawn = Drawn()
        for index, header in enumerate(fit.headers):
            drawn.add_column(Text(header), justify="left" if index == 0 else "right", no_wrap=True)
        for row in fit.rows:
            drawn.add_row(*[Text(cell, style="bold red" if "DEGENERATE" in cell else "") for cell in row])
        console.print(Text(title, style="italic"))
        for text in fit.above:
            console.print(Text(text))
        console.print(drawn)

    def _with_numbers(self, start: int) -> "Table":
        names = self.headers[start:]
        numbers = {name: str(number) for number, name in enumerate(names)}
        return replace(
            self,
            headers=(*self.headers[:start], *numbers.values()),
            need=tuple(numbers.get(name, name) for name in self.need),
            numbered=None,
            above=(", ".join(f"{number} {name}" for name, number in numbers.items()),),
        )

    def _column(self, name: str) -> list[str]:
        index = self.headers.index(name)
        return [row[index] for row in self.rows]

    def _width(self, between: int) -> int:
        columns = zip(self.headers, *self.rows, strict=True)
        return sum(max(map(cell_len, column)) for column in columns) + between * (len(self.headers) - 1)

    def _without(self, names: Sequence[str]) -> "Table":
        kept = [index for index, name in enumerate(self.headers) if name not in names]
        return replace(
            self,
            headers=tuple(self.headers[index] for index in kept),
            rows=tuple(tuple(row[index] for index in kept) for row in self.rows),
            need=tuple(name for name in self.need if name not in names),
        )


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
