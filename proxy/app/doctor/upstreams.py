"""Whether each upstream can be reached, and takes each of its keys: by `GET /models`, which costs nothing."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp
import msgspec

from proxy.adapters.clock import SystemClock
from proxy.app.upstreams import ADAPTERS, named_upstreams, session_for
from proxy.core.checkup import Finding, Verdict, clock_finding, fail, okay, warn
from proxy.core.errors import UpstreamFailure
from proxy.ports import UpstreamRequest
from proxy.settings import NamedUpstreamSettings, Settings, UpstreamKind

__all__ = ["look_at_upstreams"]

_PATIENCE_SECONDS = 10.0
_MOST_KEYS = 50
_LARGEST_LIST_BYTES = 8 * 2**20
_CODE = re.compile(r"[a-z_]{1,40}", re.ASCII)
_ANSWERS: Mapping[int, tuple[Verdict, str, str]] = {
    401: (Verdict.FAIL, "the key is refused", "put in a key of this account that was not revoked: {place}"),
    403: (
        Verdict.WARN,
        "the key may not list models here",
        "give it the right to read models, or allow this address there; requests may work all the same",
    ),
    429: (
        Verdict.WARN,
        "the key is known, and at its limit now",
        "look at the limits and the balance of the account; requests get the same answer meanwhile",
    ),
}


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


async def look_at_upstreams(settings: Settings) -> list[Finding]:
    """Ask all of them at once; each key is a line, and the clock of each is another."""
    found = await asyncio.gather(
        *(_look_at(name, upstream, settings) for name, upstream in named_upstreams(settings).items())
    )
    return [finding for each in found for finding in each]


async def _look_at(name: str, upstream: NamedUpstreamSettings, settings: Settings) -> list[Finding]:
    async with session_for(upstream, settings) as session:
        keys: list[str | None] = [*(key.reveal() for key in upstream.api_keys[:_MOST_KEYS])] or [None]
        found = await asyncio.gather(
            *(
                _ask(f"upstream.{name}" if len(keys) == 1 else f"upstream.{name}.key{number}",
                     name, upstream, settings, session, key)
                for number, key in enumerate(keys, 1)
            )
        )  # fmt: skip
    # They are told apart by their keys; the clock is the same whichever asked.
    clocks = [clock for _, clock in found if clock is not None][:1]
    return [*(finding for finding, _ in found), *clocks]


async def _ask(
    check: str,
    name: str,
    upstream: NamedUpstreamSettings,
    settings: Settings,
    session: aiohttp.ClientSession,
    key: str | None,
) -> tuple[Finding, Finding | None]:
    call = ADAPTERS[upstream.kind](name, upstream.base_url, key, session, api_version=upstream.api_version)
    clock = SystemClock()
    before_ms = clock.now_ms()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            answer = await call.send(UpstreamRequest("GET", "/models", ()))
            after_ms = clock.now_ms()
            try:
                body = bytearray()
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > _LARGEST_LIST_BYTES:
                        break
            finally:
                answer.close()
    except UpstreamFailure as failure:
        return _unreachable(check, failure.__cause__, upstream, settings), None
    except TimeoutError as error:
        return _unreachable(check, error, upstream, settings), None
    told = _clock(f"clock.{name}", name, answer.headers.get("Date"), before_ms, after_ms)
    return _judged(check, answer.status, bytes(body), upstream, _place(name, settings), has_key=key is not None), told


def _judged(  # noqa: PLR0911 - one for each thing that can be wrong
    check: str, status: int, body: bytes, upstream: NamedUpstreamSettings, place: str, *, has_key: bool
) -> Finding:
    where = _shown(upstream.base_url)
    if status == 200:
        return _listed(check, body, where, has_key=has_key)
    code = _code_of(body)
    said = f"{status} {code}".rstrip()
    if status == 401 and not has_key:
        return fail(check, f"{where} wants a key, and there is none ({said})", place)
    if code == "insufficient_quota":
        return fail(
            check, f"the account of the key has nothing left to spend ({said})", "pay, or raise its budget there"
        )
    if status in _ANSWERS:
        verdict, what, remedy = _ANSWERS[status]
        return Finding(check, verdict, f"{what} by {where} ({said})" if verdict is Verdict.FAIL else f"{what} ({said})",
                       remedy.format(place=place))  # fmt: skip
    if status in {404, 405}:
        found = warn if upstream.kind is UpstreamKind.COMPATIBLE else fail
        path = "the resource alone, without a path" if upstream.kind is UpstreamKind.AZURE else "with its version (/v1)"
        return found(check, f"{where} has no list of models ({said})", f"see that base_url is whole: {path}")
    if 300 <= status < 400:
        return fail(
            check, f"{where} leads elsewhere ({said}), which is not followed", "name where it leads in base_url"
        )
    return warn(check, f"{where} is there and answers {said}", "look at its status page; try again")


def _listed(check: str, body: bytes, where: str, *, has_key: bool) -> Finding:
    try:
        models = len(msgspec.json.decode(body, type=_Models).data)
    except msgspec.DecodeError:
        return warn(
            check,
            f"{where} answers 200 with something that is no list of models",
            "see that base_url is an API of OpenAI's form, and that nobody on the way answers in its place",
        )
    return okay(check, f"{where} answers; {'the key is good' if has_key else 'it asks for no key'}; {models} models")


def _shown(url: str) -> str:
    """Without a password that someone may have put before the host."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _code_of(body: bytes) -> str:
    """The code of an error in OpenAI's form; nothing else of the body is shown: it may quote the key."""
    try:
        code = msgspec.json.decode(body)["error"]["code"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


def _place(name: str, settings: Settings) -> str:
    """Where the keys of an upstream are written."""
    upstream = settings.upstreams.get(name)
    if upstream is None:
        return "OPENAI_API_KEY, or the file that upstream.api_key_file names"
    if upstream.api_key_variable is not None:
        return f"the variable {upstream.api_key_variable}"
    return f"the file that upstreams.{name}.api_key_file names"


def _unreachable(  # noqa: PLR0911 - one for each thing that can be wrong
    check: str, error: BaseException | None, upstream: NamedUpstreamSettings, settings: Settings
) -> Finding:
    """Say what kept us from an answer."""
    host = urlsplit(upstream.base_url).hostname or upstream.base_url
    proxy = settings.outgoing.proxies().proxy_of(upstream.base_url)
    if proxy is not None and isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        parts = urlsplit(proxy)
        why = f"answers {error.status}" if isinstance(error, aiohttp.ClientHttpProxyError) else "cannot be reached"
        return fail(
            check,
            f"the proxy {parts.hostname}:{parts.port or 80}, by which {host} is called, {why}",
            "see to HTTPS_PROXY, or except the host in NO_PROXY",
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return fail(
            check,
            f"the name {host} is not known here",
            "see that base_url is spelt right, and that this machine can look up names; behind a proxy set HTTPS_PROXY",
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return fail(check, f"{host} shows a certificate that is not good: {_certificate_fault(error)}",
                    "name its authority in upstream.ca_file; see that this machine's clock is right")  # fmt: skip
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return fail(
            check, f"{host} speaks no TLS there", "see that base_url begins with the right one of https://, http://"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return fail(
            check,
            f"{host} takes no connection: {_system_word(error.os_error)}",
            "see that base_url has the right port, and that it runs",
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return fail(check, f"no connection to {host} in time",
                    "see that no firewall is between; where calls leave by a proxy, set HTTPS_PROXY")  # fmt: skip
    if isinstance(error, TimeoutError):
        return fail(check, f"{host} does not answer in time", "see that it is well, and that base_url is its API")
    return fail(check, f"{host} broke off before its answer was whole ({type(error).__name__})",
                "see that base_url is its API, with the right port and one of https://, http://")  # fmt: skip


def _system_word(error: OSError) -> str:
    """The system's word for it; asyncio's own repeats the address."""
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _certificate_fault(error: aiohttp.ClientConnectorCertificateError) -> str:
    inner = error.certificate_error
    return inner.verify_message if isinstance(inner, ssl.SSLCertVerificationError) else type(inner).__name__


def _clock(check: str, name: str, date: str | None, before_ms: int, after_ms: int) -> Finding | None:
    """Compare by the head `Date`, which is cut to the second."""
    try:
        theirs_ms = parsedate_to_datetime(date or "").timestamp() * 1_000 + 500
    except ValueError:
        return None
    way_ms = (after_ms - before_ms) / 2
    return clock_finding(check, f"upstream {name}", before_ms + way_ms - theirs_ms, way_ms + 500)
