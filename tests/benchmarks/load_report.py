"""What a part of the load benchmark measured, beside its goals."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.table import Table

from tests.benchmarks.console import wide_console


@dataclass(frozen=True)
class Goal:
    """A figure and its bound; one that is not a number has missed it."""

    name: str
    figure: float
    bound: float
    at_most: bool
    form: str  # how both are written, as of str.format

    @property
    def met(self) -> bool:
        """Whether the figure is within the bound."""
        return self.figure <= self.bound if self.at_most else self.figure >= self.bound

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        wanted = f"{'at most' if self.at_most else 'at least'} {self.form.format(self.bound)}"
        return self.name, self.form.format(self.figure), wanted, "met" if self.met else "MISSED"


class Report:
    """Collects tables, lines and goals while its context lasts; on the way out prints them all, also after an error.

    Then it writes the figures as NAME.json and raises SystemExit where a goal was missed.
    """

    def __init__(self, name: str, folder: Path, console: Console | None = None) -> None:
        """name: of the part."""
        self._name = name
        self._folder = folder
        self._console = console or wide_console()
        self._shown: list[RenderableType] = []
        self._figures: dict[str, Any] = {}
        self._goals: list[Goal] = []

    def show(self, *shown: RenderableType) -> None:
        """Have tables and lines printed."""
        self._shown.extend(shown)

    def keep(self, **figures: Any) -> None:
        """Have figures written."""
        self._figures |= figures

    def at_most(self, name: str, figure: float, bound: float, form: str = "{:.2f}") -> None:
        """A figure that should not be larger."""
        self._goals.append(Goal(name, figure, bound, True, form))

    def at_least(self, name: str, figure: float, bound: float, form: str = "{:.2f}") -> None:
        """A figure that should not be smaller."""
        self._goals.append(Goal(name, figure, bound, False, form))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._shown:
            self._console.print(each, highlight=False, soft_wrap=isinstance(each, str))
        if self._goals:
            goals = Table("goal", "measured", "wanted", "", title=self._name)
            for goal in self._goals:
                goals.add_row(*goal.cells())
            self._console.print(goals)
        self._write()
        missed = [goal.name for goal in self._goals if not goal.met]
        if missed:
            message = f"{self._name}: goals missed: {'; '.join(missed)}"
            if error is None:
                raise SystemExit(message)
            print(message, file=sys.stderr)  # noqa: T201 - the error is told last

    def _write(self) -> None:
        goals = [vars(goal) | {"met": goal.met} for goal in self._goals]
        figures: Mapping[str, Any] = self._figures | {"goals": goals}
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._name}.json").write_text(json.dumps(figures, indent=1) + "\n")
