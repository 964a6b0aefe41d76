"""JSON objects read strictly, so that what we limited, hashed and priced is what upstream will read.

Parsers disagree on duplicate keys, NaN, huge numbers and lone surrogates (RFC 8259 leaves them open); each of these is
refused here instead of being understood in two ways.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from proxy.core.errors import InvalidRequest

__all__ = ["MAX_CONTAINERS", "MAX_DEPTH", "MAX_VALUES", "JsonObject", "canonical", "member_spans", "parse_object"]

JsonObject = dict[str, Any]

MAX_DEPTH = 64
"""Nested arrays and objects; OpenAI's deepest documented shape, a JSON schema of ten levels, needs about 30."""

MAX_CONTAINERS = 100_000
MAX_VALUES = 1_000_000
"""Arrays and objects, and all values together: each takes twenty times its bytes, and time that nobody else has.

No request to OpenAI is near: it takes 300,000 token ids at once, in 2,048 lists.
"""

_COUNTED_BYTES = 256 * 1024
_MAX_EXACT_FLOAT = float(2**53)
_INT64_DIGITS = 19
_BLANK = re.compile(r"[ \t\n\r]*")


def parse_object(body: bytes, max_depth: int = MAX_DEPTH) -> JsonObject:
    """Parse `body` as one JSON object. Raises `InvalidRequest` for anything that two parsers could read differently.

    Whole-number floats come back as integers, so that `0` and `0.0` are the same value everywhere behind this.
    """
    if not body:
        raise InvalidRequest("The request body is empty; a JSON object is expected.")
    # Each count takes a large body a third of a millisecond for every megabyte, half as long as its parse.
    containers = body.count(b"{") + body.count(b"[")
    if len(body) > MAX_CONTAINERS and _has_too_many_values(body, containers):
        raise InvalidRequest(
            f"The request body has more than {MAX_CONTAINERS} arrays and objects, or {MAX_VALUES} values in all."
        )
    try:
        value = _decoder.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The request body is not valid UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    if not isinstance(value, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    # The brackets bound the depth from above, and counting them is far cheaper than walking.
    if containers > max_depth and _depth_exceeds(value, max_depth):
        raise _too_deep(max_depth)
    # The first is found at once, and is not there in images.
    if b"\\" in body and (b"\\ud" in body or b"\\uD" in body):
        _refuse_lone_surrogates(value)
    return value


def canonical(value: JsonObject) -> bytes:
    """Write `value` in the one form that all equal objects share: sorted keys, no blanks, UTF-8."""
    return msgspec.json.encode(value, order="sorted")


def member_spans(text: str) -> dict[str, tuple[int, int, int]]:
    """Find the members of the JSON object `text`: name -> (start of the name, start of the value, end of the value).

    Offsets are in characters. Raises `ValueError` for what is not JSON.
    """
    spans: dict[str, tuple[int, int, int]] = {}
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        name, end = _scanner.raw_decode(text, at)
        value_at = _skip(text, _skip(text, end) + 1)
        _, value_end = _scanner.raw_decode(text, value_at)
        spans[name] = (at, value_at, value_end)
        at = _skip(text, value_end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return spans


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # `add` returns None, which is what lets the search go on
        raise InvalidRequest(f"The request body has the key {twice[:64]!r} twice in one object.", code="duplicate_key")
    return members


def _number(text: str) -> int | float:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequest("The request body has a number that is out of range.")
    if value.is_integer() and abs(value) < _MAX_EXACT_FLOAT:
        return int(value)
    return value


def _integer(text: str) -> int:
    if len(text) >= _INT64_DIGITS and (len(text) > _INT64_DIGITS + 1 or not -(2**63) <= int(text) < 2**63):
        raise InvalidRequest("The request body has a number that is out of range.")
    return int(text)


def _constant(text: str) -> float:
    raise InvalidRequest(f"The request body is not valid JSON: {text} is not a JSON value.")


def _has_too_many_values(body: bytes, most_containers: int) -> bool:
    """`most_containers`: brackets of all kinds, those in strings included."""
    has_few_values = len(body) < MAX_VALUES // 2 or body.count(b",") < MAX_VALUES // 2
    if most_containers <= MAX_CONTAINERS and has_few_values:
        return False
    # Without its escapes a string ends at the next quote: every other piece between quotes is outside of strings.
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    containers, values, in_string = 0, 1, False
    for at in range(0, len(plain), _COUNTED_BYTES):
        pieces = plain[at : at + _COUNTED_BYTES].split(b'"')
        signs = b"".join(pieces[in_string::2])
        containers += signs.count(b"[") + signs.count(b"{")
        values += signs.count(b",")
        if containers > MAX_CONTAINERS or containers + values > MAX_VALUES:
            return True
        in_string = in_string == (len(pieces) % 2 == 1)
    return False


def _depth_exceeds(value: object, room: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if room == 0:
        return True
    members = value.values() if isinstance(value, dict) else value
    return any(_depth_exceeds(member, room - 1) for member in members)


def _too_deep(max_depth: int) -> InvalidRequest:
    return InvalidRequest(f"The request body is nested more than {max_depth} levels deep.")


def _refuse_lone_surrogates(value: JsonObject) -> None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise InvalidRequest("The request body has half of a surrogate pair, which no UTF-8 text can hold.") from None


_scanner = json.JSONDecoder()
_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_number, parse_int=_integer, parse_constant=_constant
)
