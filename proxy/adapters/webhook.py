"""Posts notices to one URL of the operator's, signed, again until they are taken, and never in a request's way."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import random
from collections.abc import Awaitable, Callable

import aiohttp
from yarl import URL

from proxy.ports import Clock

__all__ = ["MOST_WAITING", "SIGNATURE_HEADER", "TRIES", "Webhook", "open_webhook_session", "signature"]

SIGNATURE_HEADER = "x-tollgate-signature"
TRIES = 10
MOST_WAITING = 1_000
"""Notices that may wait to be taken; more are counted and lost."""
_FIRST_WAIT_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 1_200.0
_ANSWER_SECONDS = 10.0
_AT_ONCE = 4
_log = logging.getLogger(__name__)


def signature(secret: bytes, at_seconds: int, body: bytes) -> str:
    """What the header says: `t=<unix time>,v1=<HMAC-SHA256 of "<t>.<body>", hex>`."""
    signed = hmac.new(secret, b"%d.%s" % (at_seconds, body), hashlib.sha256).hexdigest()
    return f"t={at_seconds},v1={signed}"


def open_webhook_session(proxy: str | None = None) -> aiohttp.ClientSession:
    """Connections to whoever takes notices, through a proxy or none: certificates are verified, no cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_AT_ONCE),
        timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy,
    )


class Webhook:
    """One destination. A notice is tried ten times in an hour at most; a wait is any part of one that doubles.

    Anything but a 2xx is a failure, a redirect too. `count` is told `delivered`, `failed` for each try that came to
    nothing, and `lost` for a notice that was given up. Neither the URL nor the secret is ever shown: both may let
    somebody in.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        session: aiohttp.ClientSession,
        clock: Clock,
        count: Callable[[str], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._url = URL(url)
        self._secret = secret.encode()
        self._session = session
        self._clock = clock
        self._count = count
        self._sleep = sleep
        self._draw = draw
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting: set[asyncio.Task[None]] = set()
        self._closed = False

    def __repr__(self) -> str:
        return "Webhook()"

    def send(self, body: bytes) -> None:
        """Have a JSON document posted, some time; returns at once."""
        if self._closed or len(self._waiting) >= MOST_WAITING:
            self._count("lost")
            return
        task = asyncio.get_running_loop().create_task(self._deliver(body))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def close(self, patience_seconds: float) -> None:
        """Let what is under way be taken for a moment, and give up the rest."""
        self._closed = True
        if not self._waiting:
            return
        _, late = await asyncio.wait(tuple(self._waiting), timeout=patience_seconds)
        for task in late:
            task.cancel()
            self._count("lost")
        await asyncio.gather(*late, return_exceptions=True)

    async def _deliver(self, body: bytes) -> None:
        longest = _FIRST_WAIT_SECONDS
        for tried in range(1, TRIES + 1):
            async with self._turn:
                problem = await self._post(body)
            if problem is None:
                self._count("delivered")
                return
            self._count("failed")
            _log.warning("a notice was not taken by the webhook (%s, try %d of %d)", problem, tried, TRIES)
            if tried < TRIES:
                await self._sleep(self._draw() * longest)
                longest = min(2 * longest, _LONGEST_WAIT_SECONDS)
        self._count("lost")

    async def _post(self, body: bytes) -> str | None:
        """Post it once; what went wrong, None for nothing. The words are ours: an error's own may quote the URL."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tollgate",
            SIGNATURE_HEADER: signature(self._secret, self._clock.now_ms() // 1_000, body),
        }
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                return None if 200 <= answer.status < 300 else f"status {answer.status}"
        except TimeoutError:
            return "no answer in time"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__
