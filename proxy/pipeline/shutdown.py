"""How far the process has come with its end."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Shutdown"]


@dataclass(slots=True)
class Shutdown:
    """Set once by whoever drains the process, asked by whoever accounts for what was cut."""

    over: bool = False
    """There was time to finish, and it is used up: what is cut from here on is our doing and no client's."""
