"""Whom a file belongs to that root makes in somebody else's directory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["give_to_owner"]


def give_to_owner(descriptor: int, path: Path) -> None:
    """Give a file that is being made to whoever has what it replaces, or else the directory.

    Root administers what a server of another user reads: left to root, that server could not. Others keep what they
    make.
    """
    if os.geteuid() != 0:
        return
    owner = (path if path.exists() else path.parent).stat()
    # Root without the right to give files away keeps them.
    with suppress(PermissionError):
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
