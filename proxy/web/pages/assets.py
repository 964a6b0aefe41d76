"""What pages load: one style, one script, and uPlot as its authors released it. All of it comes with the package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

__all__ = ["ASSETS", "UPLOT", "Asset", "asset", "url_of"]

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
UPLOT = "uplot-1.6.32.min"
ASSETS = frozenset({"pages.css", "pages.js", f"{UPLOT}.js", f"{UPLOT}.css"})


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that pages load."""

    content: bytes = field(repr=False)
    content_type: str
    version: str
    """What another content would not have."""


@cache
def asset(name: str) -> Asset:
    """One of `ASSETS`. Raises `KeyError` for what is none."""
    if name not in ASSETS:
        raise KeyError(name)
    content = files(__package__).joinpath("static", name).read_bytes()
    return Asset(content, _TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:12])


def url_of(base: str, name: str) -> str:
    """Where a page that is served below `base` finds a file: elsewhere once the file is another."""
    return f"{base}/{name}?v={asset(name).version}"
