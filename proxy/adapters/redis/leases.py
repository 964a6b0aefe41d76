"""Places that this process has taken in the store, each under a lease: what a request that is under way goes by.

Who dies renews nothing, and its places fall free when their leases expire.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from proxy.adapters.redis.bucket_state import pack_places, places_key
from proxy.adapters.redis.scripts import Scripts
from proxy.core.bucket import Cost, Handle, Scope

__all__ = ["LEASE_MS", "RENEW_SECONDS", "Lease", "Leases", "take_back"]

LEASE_MS = 60_000
"""How long a place is held without a word, by the store's clock; the scripts hold the same number."""
RENEW_SECONDS = 20.0
"""Two renewals may be lost before a place is."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One reservation's places."""

    id: bytes
    keys: tuple[str, ...]
    """The sets of places it is in, all of one team."""
    terms: bytes = field(repr=False)
    """What the script that grants it is told: `pack_places`."""


class Leases:
    """The leases that are held here, by the first handle of their reservation."""

    def __init__(self, worker: str) -> None:
        # A name may come again, with another process; what follows it does not.
        self._holder = f"{worker}:{secrets.token_hex(6)}"
        self._numbers = count(1)
        self._held: dict[Handle, Lease] = {}

    def __len__(self) -> int:
        """How many reservations are held here."""
        return len(self._held)

    def draw(self, team: str, scopes: Sequence[Scope], cost: Cost) -> Lease | None:
        """A lease of its own for a reservation to come; None where it takes no place."""
        taking = [(index, scope) for index, scope in enumerate(scopes) if scope.places_for(cost)]
        if not taking:
            return None
        places = [(index, scope.max_parallel or 0) for index, scope in taking]
        keys = tuple(places_key(team, scope.name) for _, scope in taking)
        return Lease(f"{self._holder}:{next(self._numbers)}".encode(), keys, pack_places(places))

    def hold(self, handle: Handle, lease: Lease) -> None:
        """Note that it was granted."""
        self._held[handle] = lease

    def give_up(self, handle: Handle) -> Lease | None:
        """The lease to give back at settlement, no longer renewed; None where no place was taken."""
        return self._held.pop(handle, None)

    def by_key(self) -> Iterator[tuple[str, list[bytes]]]:
        """What is held in each set of places."""
        held: dict[str, list[bytes]] = {}
        for lease in self._held.values():
            for key in lease.keys:
                held.setdefault(key, []).append(lease.id)
        return iter(held.items())


def take_back(lease: Lease | None, scripts: Scripts) -> None:
    """Give back places that may have been granted to a reservation whose answer nobody has; does not wait.

    It follows the question on the same connection. Where it is lost the lease expires.
    """
    if lease is not None:
        for key in lease.keys:
            scripts.remove(key, lease.id)
