"""What the `server` extra brings, and whether it is there; imports none of it."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["INSTALL_SERVER", "missing_for_cache"]

INSTALL_SERVER = "pip install 'tollgate[server]'"
_FOR_CACHE = ("cryptography",) if sys.version_info >= (3, 14) else ("cryptography", "backports.zstd")


def missing_for_cache() -> tuple[str, ...]:
    """Packages that a cache in Redis needs and this installation lacks."""
    return tuple(name for name in _FOR_CACHE if not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        # Of the parent package.
        return False
