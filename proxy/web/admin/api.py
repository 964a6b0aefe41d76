"""The admin API on the operations listener: token, path, body, then the operation on a thread, then its answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from proxy.core.errors import BodyTooLarge, InvalidRequest
from proxy.web.admin.decode import body_of, params_of
from proxy.web.admin.desk import Desk
from proxy.web.admin.errors import NOT_ADMITTED, refusal_of
from proxy.web.admin.lane import Lane
from proxy.web.admin.operation import PREFIX, Nothing, Operation
from proxy.web.admin.table import find
from proxy.web.downstream import AiohttpDownstream
from proxy.web.errors import ErrorAnswer, error_body

__all__ = ["AdminApi", "error_response"]

_AT_ONCE = 4
"""Threads: with SQLite one of them writes at a time, and each holds a connection of the pool."""
_WAITING = 64
_LONG_WAITING = 2
_SHOWN_CHARACTERS = 256


class AdminApi:
    """Answers what lies under `PREFIX`, for whoever `admits` says has the token. Belongs to one event loop."""

    def __init__(self, desk: Desk, admits: Callable[[str], bool]) -> None:
        self._desk = desk
        self._admits = admits
        self._lane: Lane[bytes] = Lane(_AT_ONCE, _WAITING)
        self._long_lane: Lane[bytes] = Lane(1, _LONG_WAITING)

    @staticmethod
    def serves(path: str) -> bool:
        """Whether a path is one of ours to answer."""
        return path == PREFIX or path.startswith(f"{PREFIX}/")

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Carry out one request. Nothing of it is looked at before its token is."""
        if not self._admits(_token_of(request)):
            return error_response(NOT_ADMITTED)
        try:
            return await self._carry_out(request)
        except ConnectionResetError:
            raise
        except Exception as error:  # noqa: BLE001 - the last border: no error leaves here unshaped
            return error_response(refusal_of(error))

    async def _carry_out(self, request: web.BaseRequest) -> web.Response:
        path, _, query = request.raw_path.partition("?")
        found = find(request.method, path)
        operation = found.operation
        if operation is None:
            return error_response(_not_found(request.method, path, found.methods))
        if operation.body is not Nothing and request.content_type != "application/json":
            return error_response(ErrorAnswer(415, "The body must be application/json.", param="Content-Type"))
        content = await _receive(request, operation)
        lane = self._long_lane if operation.is_long else self._lane
        body = await lane.run(partial(_call, self._desk, operation, found.params, query, content))
        return _response(operation.status, body, operation.media_type)


async def _receive(request: web.BaseRequest, operation: Operation) -> bytes:
    content = await AiohttpDownstream(request, (), operation.max_body_bytes).receive()
    if len(content) > operation.max_body_bytes:
        raise BodyTooLarge(operation.max_body_bytes)
    if content and operation.body is Nothing:
        raise InvalidRequest(f"{operation.method} {operation.path} takes no body.")
    return content


def _call(desk: Desk, operation: Operation, path: dict[str, str], query: str, content: bytes) -> bytes:
    """Decode, carry out and encode: all of it on a thread, for a list of keys takes its time."""
    params, body = params_of(operation, path, query), body_of(operation, content)
    result: Any = operation.handle(desk, params, body)
    return result.encode() if isinstance(result, str) else msgspec.json.encode(result)


def _token_of(request: web.BaseRequest) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _not_found(method: str, path: str, methods: tuple[str, ...]) -> ErrorAnswer:
    # What is not UTF-8 in it could not be written as JSON.
    shown = path[:_SHOWN_CHARACTERS].encode("ascii", "backslashreplace").decode()
    if not methods:
        return ErrorAnswer(404, f"Invalid URL ({method} {shown})", code="not_found")
    headers = (("Allow", ", ".join(methods)),)
    return ErrorAnswer(405, f"{shown} has no {method}.", code="method_not_allowed", headers=headers)


def error_response(answer: ErrorAnswer) -> web.Response:
    """An error as it is sent."""
    response = _response(answer.status, error_body(answer), "application/json")
    for name, value in answer.headers:
        response.headers[name] = value
    return response


def _response(status: int, body: bytes, media_type: str) -> web.Response:
    # A key is in some of them; none is to be kept by anybody on the way.
    headers = {"Content-Type": media_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    if media_type.startswith("text/"):
        headers["Content-Type"] = f"{media_type}; charset=utf-8"
    return web.Response(status=status, body=body, headers=headers)
