"""The upstream API over aiohttp; foreign errors become ours here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import cached_property

import aiohttp
from yarl import URL

from proxy.adapters.pacer import FREE_TURN, Pacer
from proxy.adapters.request_head import header_lines, is_plain_target, request_head
from proxy.adapters.upstream_connector import (
    FINAL,
    LONGEST_LINE_BYTES,
    READ_AHEAD_BYTES,
    Destination,
    Received,
    UpstreamConnector,
)
from proxy.core.errors import TollgateError, UpstreamFailure, UpstreamFault
from proxy.ports import Body, Turn, UpstreamAnswer, UpstreamRequest

__all__ = ["CompatibleUpstream", "OpenAIUpstream", "open_session"]

_NOT_OURS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers aiohttp would add where the client sent none: its own are not the client's words."""
_UNENCODED = ("Accept-Encoding", "identity")
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2; aiohttp's client has the same."""
_OF_OPENAI = ("openai-", "x-stainless-")
"""How headers begin that no other API knows."""


def open_session(
    *,
    max_connections: int,
    connect_seconds: float,
    idle_seconds: float,
    tls: ssl.SSLContext | None = None,
    proxy: str | None = None,
) -> aiohttp.ClientSession:
    """Open the pool of connections upstream. `idle_seconds` is the longest silence between two reads.

    `tls`: what verifies certificates; None: the system's authorities. `proxy`: the URL of the proxy that all calls go
    through, with its password if it has one. The environment is not asked: aiohttp would ask it for every call, and
    take passwords for upstream from `~/.netrc` with it.

    Nothing of upstream's is followed or remembered: no redirects, no cookies. Answers are asked for as they are; one
    that comes compressed all the same is undone here, because its encoding is not told to the client.
    """
    timeout = aiohttp.ClientTimeout(
        total=None, connect=None, sock_connect=connect_seconds, sock_read=idle_seconds, ceil_threshold=3_600
    )
    return aiohttp.ClientSession(
        connector=UpstreamConnector(
            limit=max_connections,
            keepalive_timeout=30,
            ttl_dns_cache=60,
            ssl=True if tls is None else tls,
            proxy=proxy,
            timeout=timeout,
        ),
        proxy=proxy,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_NOT_OURS,
        max_line_size=LONGEST_LINE_BYTES,
        max_field_size=LONGEST_LINE_BYTES,
        read_bufsize=READ_AHEAD_BYTES,
    )


class OpenAIUpstream:
    """Keeps the promises of `ports.Upstream` for an OpenAI-compatible API."""

    def __init__(
        self,
        name: str,
        base_url: str,
        api_key: str | None,
        session: aiohttp.ClientSession,
        pacer: Pacer | None = None,
        *,
        api_version: str | None = None,  # noqa: ARG002 - of those kinds that have versions
    ) -> None:
        self.name = name
        self._base_url = self.identity = base_url.rstrip("/")
        self._api_key = api_key or None
        self._session = session
        self._pacer = pacer
        self._origin, self._path_before = _parted(self._base_url)

    def __repr__(self) -> str:
        return f"OpenAIUpstream({self.name!r}, {self.identity!r})"

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return self._pacer.waiting if self._pacer is not None else 0

    async def turn(
        self,
        team: str = "",
        weight: int = 1,
        tokens: int = 0,
        on_wait: Callable[[], None] = lambda: None,
        model: str = "",
    ) -> Turn:
        """Wait for this key's pace."""
        if self._pacer is None:
            return FREE_TURN
        return await self._pacer.turn(team, weight, tokens, on_wait, model)

    async def send(self, request: UpstreamRequest) -> UpstreamAnswer:
        """Send once; returns at the head of the answer."""
        body, target, site = request.body, self._target(request), self._site
        if site is None or not isinstance(body, bytes) or not is_plain_target(target):
            return await self._send_by_session(request, target)
        own = site.own if request.as_it_is else site.own_unencoded
        head = request_head(request.method, target, own, self._passed_on(request), len(body))
        try:
            received = await site.connector.call(
                site.destination,
                head,
                body,
                is_head=request.method == "HEAD",
                is_idempotent=request.method in _IDEMPOTENT,
                decompress=not request.as_it_is,
            )
        except _FOREIGN as error:
            raise UpstreamFailure(self.name, _fault(error)) from error
        return self._answer(received, request)

    async def _send_by_session(self, request: UpstreamRequest, target: str) -> UpstreamAnswer:
        """Send what comes piece by piece, and what is not written as it is everywhere."""
        headers = [*self._passed_on(request), *self._key_headers()]
        if not request.as_it_is:
            headers.append(_UNENCODED)
        sent = None
        if not isinstance(request.body, bytes):
            sent = _Sent(request.body, self._session.timeout.sock_read)
            if request.body.length is not None:
                headers.append(("Content-Length", str(request.body.length)))
        try:
            async with _PATIENT if sent is None else sent.patience:
                response = await self._session.request(
                    request.method,
                    # As the client wrote it: decoding and encoding again could name another thing.
                    URL(self._origin + target, encoded=True),
                    headers=headers,
                    data=(request.body or None) if sent is None else sent.chunks(),
                    allow_redirects=False,
                    auto_decompress=not request.as_it_is,
                )
            if response.status < FINAL:
                response.close()
                raise aiohttp.ClientPayloadError("upstream answers with what is no answer")
        except _FOREIGN as error:
            if sent is not None and sent.error is not None:
                raise sent.error from None
            raise UpstreamFailure(self.name, _fault(error)) from error
        finally:
            if sent is not None:
                # What answers before it has all goes on taking it for a moment.
                sent.is_over = True
        return self._answer(response, request)

    def _answer(self, head: Received | aiohttp.ClientResponse, request: UpstreamRequest) -> UpstreamAnswer:
        if self._pacer is not None:
            self._pacer.observe(head.status, head.headers, request.model)
        return AiohttpAnswer(head, self.name)

    @cached_property
    def _site(self) -> _Site | None:
        """What all calls have in common, None where the session has to make them."""
        connector = self._session.connector
        if not isinstance(connector, UpstreamConnector):
            return None
        destination = connector.destination(self._origin)
        if destination is None:
            return None
        own = header_lines([("Host", destination.host_header), *self._key_headers()], ours=True)
        return _Site(connector, destination, own)

    def _target(self, request: UpstreamRequest) -> str:
        """Path and query."""
        return self._path_before + request.path_qs

    def _passed_on(self, request: UpstreamRequest) -> Iterable[tuple[str, str]]:
        """The client's headers."""
        return request.headers

    def _key_headers(self) -> list[tuple[str, str]]:
        """The one that our key is told in."""
        return [] if self._api_key is None else [("Authorization", f"Bearer {self._api_key}")]


class CompatibleUpstream(OpenAIUpstream):
    """Somebody else's API in OpenAI's words: what OpenAI's SDKs say to OpenAI alone is left out."""

    def _passed_on(self, request: UpstreamRequest) -> Iterable[tuple[str, str]]:
        return [pair for pair in request.headers if not pair[0].lower().startswith(_OF_OPENAI)]


class _Site:
    """What all calls of an upstream under one key have in common. Holds the key."""

    __slots__ = ("connector", "destination", "own", "own_unencoded")

    def __init__(self, connector: UpstreamConnector, destination: Destination, own: str) -> None:
        self.connector = connector
        self.destination = destination
        self.own = own
        """Lines of the head."""
        self.own_unencoded = own + header_lines([_UNENCODED])


class _Sent:
    """A body on its way upstream; remembers what broke it off, for which the client library has a word of its own.

    Its `patience` ends where upstream takes nothing for so long: the client library bounds its silence alone.
    """

    __slots__ = ("_body", "_idle_seconds", "error", "is_over", "patience")

    def __init__(self, body: Body, idle_seconds: float | None) -> None:
        self._body = body
        self._idle_seconds = idle_seconds
        self.error: Exception | None = None
        self.is_over = False
        """Nobody waits for it any more."""
        self.patience = asyncio.timeout(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._body.chunks():
                self._wait(self._idle_seconds)
                yield chunk
                self._wait(None)
        except (TollgateError, ConnectionResetError) as error:
            self.error = error
            raise

    def _wait(self, seconds: float | None) -> None:
        if self.is_over:
            return
        self.patience.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


class AiohttpAnswer:
    """Keeps the promises of `ports.UpstreamAnswer`."""

    __slots__ = ("_body", "_content", "_head", "_upstream", "headers", "status")

    def __init__(self, head: Received | aiohttp.ClientResponse, upstream: str) -> None:
        self._head = head
        self._content = head.content
        self._upstream = upstream
        self._body: bytes | None = None
        self.status = head.status
        self.headers: Mapping[str, str] = head.headers

    async def read(self) -> bytes:
        """Return the whole body; the second call returns the same bytes."""
        body = self.arrived()
        if body is None:
            try:
                body = self._body = await self._content.read()
            except _FOREIGN as error:
                raise UpstreamFailure(self._upstream, _fault(error)) from error
        return body

    def arrived(self) -> bytes | None:
        """Return the whole body if no more of it is to come, None otherwise."""
        if self._body is None and self._content.is_eof() and self._content.exception() is None:
            self._body = self._content.read_nowait()
        return self._body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        content = self._content
        try:
            while chunk := await content.readany():
                yield chunk
        except _FOREIGN as error:
            raise UpstreamFailure(self._upstream, _fault(error)) from error

    def close(self) -> None:
        """Close the connection, which is what stops upstream, unless all has come: it is in use again by then."""
        self._head.close()


_PATIENT: AbstractAsyncContextManager[object] = nullcontext()
_FOREIGN = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
_NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.InvalidURL, ssl.SSLError)


def _fault(error: BaseException) -> UpstreamFault:
    # Timeouts first: aiohttp's are connection errors too, and one of them is an OSError.
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamFault.UNREACHABLE
    if isinstance(error, TimeoutError):
        return UpstreamFault.TIMEOUT
    if isinstance(error, _NOT_REACHED):
        return UpstreamFault.UNREACHABLE
    return UpstreamFault.BROKEN


def _parted(base_url: str) -> tuple[str, str]:
    """Scheme and authority of a URL, and the path."""
    begin = base_url.find("://") + 3
    end = base_url.find("/", begin)
    return (base_url, "") if end < 0 else (base_url[:end], base_url[end:])
