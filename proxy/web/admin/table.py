"""Every operation of the admin API, and how one is found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from proxy.web.admin import accounts, keys, prices, teams
from proxy.web.admin.decode import segment
from proxy.web.admin.description import describing, document
from proxy.web.admin.operation import PREFIX, Operation

__all__ = ["OPERATIONS", "Found", "described", "find"]


@cache
def described() -> dict[str, Any]:
    """The description of all operations."""
    return document(OPERATIONS)


OPERATIONS: tuple[Operation, ...] = (
    *teams.OPERATIONS,
    *keys.OPERATIONS,
    *accounts.OPERATIONS,
    *prices.OPERATIONS,
    describing(described),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a path leads to."""

    operation: Operation | None
    """None: the path has no such method."""
    methods: tuple[str, ...]
    """Those it has; none: there is no such path."""
    params: dict[str, str]


def find(method: str, path: str) -> Found:
    """The operation behind a path as it was sent. Raises `InvalidRequest` for one that is not UTF-8."""
    wanted = path.removeprefix(PREFIX).split("/")
    fitting = [operation for operation in OPERATIONS if _fits(operation.path.split("/"), wanted)]
    # A path that is spelled out goes before one with parameters.
    plain = [operation for operation in fitting if operation.path == path.removeprefix(PREFIX)]
    candidates = plain or fitting
    methods = tuple(operation.method for operation in candidates)
    for operation in candidates:
        if operation.method == method:
            return Found(operation, methods, _params(operation.path.split("/"), wanted))
    return Found(None, methods, {})


def _fits(template: list[str], wanted: list[str]) -> bool:
    return len(template) == len(wanted) and all(
        text if part.startswith("{") else part == text for part, text in zip(template, wanted, strict=True)
    )


def _params(template: list[str], wanted: list[str]) -> dict[str, str]:
    return {
        part.strip("{}"): segment(text) for part, text in zip(template, wanted, strict=True) if part.startswith("{")
    }
