"""What the lab found: checks that passed or failed, and figures; printed live, then as a table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_MARKS = {True: "[green]ok[/green]", False: "[red]FAILED[/red]", None: ""}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the lab was to show. `passed` is None for a figure that nothing depends on."""

    name: str
    passed: bool | None
    found: str


@dataclass
class Report:
    """Collects checks and figures and says them as they come."""

    console: Console
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what is going on while it is."""
        self.console.print(f"[bold]{escape(what)}[/bold]", soft_wrap=True)
        yield

    def say(self, text: str) -> None:
        """A line about the step in progress."""
        self.console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)

    def check(self, name: str, passed: bool, found: str) -> bool:
        """Record a check and say it."""
        self.checks.append(Check(name, passed, found))
        self.console.print(f"  {_MARKS[passed]} {escape(name)}: {escape(found)}", highlight=False, soft_wrap=True)
        return passed

    def note(self, name: str, found: str) -> None:
        """Record a figure that no verdict depends on, and say it."""
        self.checks.append(Check(name, None, found))
        self.console.print(f"  {_MARKS[None]} {escape(name)}: {escape(found)}", highlight=False, soft_wrap=True)

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if check.passed is False]

    def print_table(self) -> None:
        """Everything once more, as a table."""
        table = Table(title="DSVPN lab", title_justify="left", expand=False)
        table.add_column("what it must show", overflow="fold")
        table.add_column("found", overflow="fold")
        table.add_column("")
        for check in self.checks:
            table.add_row(escape(check.name), escape(check.found), _MARKS[check.passed])
        self.console.print(table)
        verdicts = sum(check.passed is not None for check in self.checks)
        if self.failed:
            self.console.print(f"[red]{len(self.failed)} of {verdicts} checks failed[/red]")
        else:
            self.console.print(f"[green]all {verdicts} checks passed[/green]")

    def write_json(self, file: Path) -> None:
        """The checks and figures, for machines."""
        checks = [{"name": check.name, "passed": check.passed, "found": check.found} for check in self.checks]
        file.write_text(json.dumps({"checks": checks, "figures": self.figures}, indent=2) + "\n")
