"""The composition root: settings become adapters, adapters become the pipeline, the pipeline becomes two listeners."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

from proxy.app.database import alone_in, alone_on, open_books, open_database, open_registry, open_reports, prove_peppers
from proxy.app.logging import log_to_stderr
from proxy.settings import Settings

__all__ = ["open_books", "open_registry", "open_reports", "serve"]


def serve(settings: Settings, *, demo: bool = False) -> int:
    """Run until told to stop; return the exit status."""
    # The command line manages teams without loading a server.
    import uvloop  # noqa: PLC0415

    from proxy.app.run import run  # noqa: PLC0415

    log_to_stderr()
    shared = settings.redis_url is not None
    with (
        nullcontext() if shared else alone_in(settings.data_dir),
        open_database(settings) as engine,
        nullcontext() if shared else alone_on(engine),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        prove_peppers(settings, engine)
        return runner.run(run(settings, engine, demo=demo))
