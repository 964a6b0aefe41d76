"""How often an address may try keys that open nothing."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from proxy.ports import Clock

__all__ = ["MAX_FAILURES", "WINDOW_MS", "FailedSignIns"]

MAX_FAILURES = 10
WINDOW_MS = 60_000
_MAX_ADDRESSES = 10_000
_V6_NETWORK = 64


class FailedSignIns:
    """Counts the failures of a minute by address; of IPv6, by the network that one holder has."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """When the first of a minute was, on the monotonic clock, and how many there were."""

    def wait_ms(self, address: str | None) -> int:
        """How long this address has to wait until it may try; 0: it may."""
        began_ms, failures = self._failures.get(_network(address), (0, 0))
        return max(0, began_ms + WINDOW_MS - self._ms()) if failures >= MAX_FAILURES else 0

    def tried(self, address: str | None) -> None:
        """Note that this address tries a key: before it is looked up, so that many at once are counted too."""
        network, ms = _network(address), self._ms()
        began_ms, failures = self._failures.pop(network, (ms, 0))
        if ms - began_ms >= WINDOW_MS:
            began_ms, failures = ms, 0
        self._failures[network] = (began_ms, failures + 1)
        if len(self._failures) > _MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def opened(self, address: str | None) -> None:
        """Take back what `tried` noted: the key was not a wrong one."""
        network = _network(address)
        began_ms, failures = self._failures.get(network, (0, 0))
        if failures > 1:
            self._failures[network] = (began_ms, failures - 1)
        else:
            self._failures.pop(network, None)

    def _ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000


def _network(address: str | None) -> str:
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _V6_NETWORK), strict=False))
