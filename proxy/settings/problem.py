"""What is wrong with settings, and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["COMMAND_LINE", "ENVIRONMENT", "Origin", "Problem", "SettingsError", "nearest"]

ENVIRONMENT = "environment"
COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file and its line, the environment, or the command line."""

    source: str
    name: str
    """The value's name as it is written there: `server.port`, `TOLLGATE_PORT`, `--port`."""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    `key` is the name as its writer knows it (`server.port`, `TOLLGATE_PORT`, `--port`); `file` is the path of the
    settings file, `environment`, `command line`, or None where no value was written at all.
    """

    key: str
    message: str
    file: str | None = None
    line: int | None = None
    suggestion: str | None = None

    @classmethod
    def at(cls, origin: Origin, message: str, suggestion: str | None = None) -> Problem:
        """A problem with the value written at `origin`."""
        return cls(origin.name, message, origin.source, origin.line, suggestion)

    def __str__(self) -> str:
        place = "" if self.file is None else f"{self.file}: " if self.line is None else f"{self.file}:{self.line}: "
        hint = "" if self.suggestion is None else f" ({self.suggestion})"
        return f"{place}{self.key}: {self.message}{hint}"


class SettingsError(Exception):
    """The settings cannot be used; `problems` says why, all at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A suggestion naming the known name most like `name`, or None when none is like it."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {matches[0]}?" if matches else None
