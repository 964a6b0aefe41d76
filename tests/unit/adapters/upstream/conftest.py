import asyncio

import uvloop


def pytest_asyncio_loop_factories(config, item):
    """The loop the server runs on, and Python's own, which the library allows as well."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
