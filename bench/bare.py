"""What the gateway is measured against: aiohttp as its documentation shows it, which does nothing beside.

`python bench/bare.py --port N --static < ANSWER` gives one answer; `--upstream URL` passes on what URL says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

MAX_BODY_BYTES = 64 * 2**20


def static(body: bytes) -> web.Application:
    """Answers everything with `body`."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    return application


def passing(upstream: str) -> web.Application:
    """Asks `upstream` what it was asked itself: answers whole, streams piece by piece."""
    session = web.AppKey("session", aiohttp.ClientSession)

    async def client(application: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as application[session]:
            yield

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name: request.headers[name] for name in ("Authorization", "Content-Type") if name in request.headers}
        url = upstream + request.path_qs
        async with request.app[session].request(request.method, url, data=body, headers=headers) as said:
            if said.content_type == "text/event-stream":
                return await streamed(request, said)
            return web.Response(body=await said.read(), status=said.status, content_type=said.content_type)

    application = web.Application(client_max_size=MAX_BODY_BYTES)
    application.cleanup_ctx.append(client)
    application.router.add_route("*", "/{path:.*}", answer)
    return application


async def streamed(request: web.Request, said: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass on what comes as it comes."""
    response = web.StreamResponse(status=said.status, headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    async for chunk in said.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


def main() -> None:
    """Serve until SIGTERM."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    mode = arguments.add_mutually_exclusive_group(required=True)
    mode.add_argument("--static", action="store_true", help="give what standard input holds")
    mode.add_argument("--upstream", metavar="URL", help="pass on what this one says")
    chosen = arguments.parse_args()
    application = static(sys.stdin.buffer.read()) if chosen.static else passing(chosen.upstream)
    try:
        import uvloop  # noqa: PLC0415 - it does not install everywhere

        loop = uvloop.new_event_loop()
    except ImportError:
        loop = None
    web.run_app(application, host="127.0.0.1", port=chosen.port, access_log=None, print=None, loop=loop)


if __name__ == "__main__":
    main()
