"""A process that fills an address and never finishes: `python -m tests.support.cache_holder URL LEASE_MS`.

It says `held` once it has the right, and holds it until it is killed.
"""

from __future__ import annotations

import asyncio
import sys

from tests.support.cache_build import at, open_cache


async def main(url: str, lease_ms: int) -> None:
    async with open_cache(url, is_listening=False, lease_ms=lease_ms) as cache:
        fill = await cache.claim(at())
        assert fill is not None
        print("held", flush=True)
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
