"""Examines a deployment from the outside: what `tollgate doctor` tells."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

from proxy.app.doctor.database import look_at_database
from proxy.app.doctor.files import look_at_files
from proxy.app.doctor.machine import look_at_machine, look_at_ports
from proxy.app.doctor.upstreams import look_at_upstreams
from proxy.core.checkup import Finding, fail
from proxy.settings import Settings

__all__ = ["examine"]

_PATIENCE_SECONDS = 20.0
"""For each part; all of them are looked at at once, and bound their own waits more closely."""


def examine(settings: Settings, config: Path | None = None, unusable: Collection[str] = ()) -> list[Finding]:
    """Look at everything that the settings name, at once, in bounded time, changing nothing.

    `config`: the settings file. `unusable`: keys of settings that cannot be used, whose parts are passed over.
    """
    return asyncio.run(_examine(settings, config, unusable))


class _Unwaited(ThreadPoolExecutor):
    """Threads that nobody waits for at the end: one that looks up a name may be held for minutes."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - told to whoever asked
                future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as inherited
        """There is nothing to wait for."""


async def _examine(settings: Settings, config: Path | None, unusable: Collection[str]) -> list[Finding]:
    asyncio.get_running_loop().set_default_executor(_Unwaited())
    parts = [
        _part("machine", asyncio.to_thread(look_at_machine, settings)),
        _part("files", asyncio.to_thread(look_at_files, settings, config)),
        _part("listeners", asyncio.to_thread(look_at_ports, settings)),
    ]
    if "database_url" not in unusable:
        parts.append(_part("database", asyncio.to_thread(look_at_database, settings)))
    names_redis = settings.redis_url is not None or settings.cache_redis_url is not None
    if names_redis and not {"redis_url", "cache_redis_url"} & set(unusable):
        from proxy.app.doctor.redis import look_at_redis  # noqa: PLC0415 - loaded only where there is a Redis

        parts.append(_part("redis", look_at_redis(settings)))
    parts.append(_part("upstream", look_at_upstreams(settings)))
    return [finding for found in await asyncio.gather(*parts) for finding in found]


async def _part(check: str, looking: Awaitable[list[Finding]]) -> list[Finding]:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await looking
    except TimeoutError:
        return [fail(check, f"nothing is known after {_PATIENCE_SECONDS:g} s", "see what holds this machine up")]
    except OSError as error:
        # Of all that is looked at: an answer for the others is worth more than none.
        where = f"{error.filename}: " if error.filename else ""
        return [fail(check, f"{where}{error.strerror or type(error).__name__}", "see to that, and ask again")]
