"""Writing to a response, in the pieces and at the speed that a request's faults ask for."""

from __future__ import annotations

import zlib

from aiohttp import web

from proxy.simulator.clock import Time
from proxy.simulator.faults import Faults

__all__ = ["PackingWriter", "Writer"]


class Writer:
    """Writes each piece at once, or `split` bytes at a time, with pauses between them where it drips."""

    def __init__(self, response: web.StreamResponse, faults: Faults, time: Time) -> None:
        self._response = response
        self._split = faults.split or (1 if faults.drip_ms else None)
        self._pause_seconds = faults.drip_ms / 1_000
        self._time = time
        self._held = bytearray()

    async def write(self, data: bytes) -> None:
        """Write all of `data`, or whole pieces of it and keep the rest."""
        if self._split is None:
            await self._response.write(data)
            return
        self._held += data
        while len(self._held) >= self._split:
            await self._response.write(bytes(self._held[: self._split]))
            del self._held[: self._split]
            await self._time.sleep(self._pause_seconds)  # uvloop sends what is written within one turn together

    async def flush(self) -> None:
        """Write what was kept."""
        if self._held:
            await self._response.write(bytes(self._held))
            self._held.clear()


class PackingWriter(Writer):
    """The same, compressed with gzip; each piece can be read as soon as it came."""

    def __init__(self, response: web.StreamResponse, faults: Faults, time: Time) -> None:
        super().__init__(response, faults, time)
        self._packer = zlib.compressobj(wbits=31)

    async def write(self, data: bytes) -> None:
        """Write all of `data`."""
        await super().write(self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH))

    async def flush(self) -> None:
        """Write what was kept, and the end."""
        await super().write(self._packer.flush(zlib.Z_FINISH))
        await super().flush()
