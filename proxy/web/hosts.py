"""Names that the operations listener answers to.

A page in somebody's browser can have its own name resolve to our address, and then read what we answer as its own
(DNS rebinding). It cannot choose an address, nor a name without a dot, which no public zone can hold.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

__all__ = ["is_our_name"]


def is_our_name(host: str | None, allowed: Collection[str]) -> bool:
    """Whether a request with this `Host` may be answered; without one no browser sent it. `allowed`: in lower case."""
    if host is None:
        return True
    name = host.strip().lower()
    if name.startswith("["):
        name, _, port = name[1:].partition("]")
        return _is_address(name) and (not port or port[1:].isdecimal())
    name, _, port = name.partition(":")
    if port and not port.isdecimal():
        return False
    name = name.removesuffix(".")
    return "." not in name or name.endswith(".localhost") or name in allowed or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
