"""What clients do to a listener that is no request: the names it is counted under."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Cut", "Malformed"]


class Malformed(StrEnum):
    """Why something was refused before it became a request."""

    REQUEST = "request"
    """The request line or a header is not HTTP."""
    FRAMING = "framing"
    """Where the body ends is told in two ways or in none, or it breaks off in the middle."""
    HEAD_TOO_LARGE = "head_too_large"
    TOO_MANY_HEADERS = "too_many_headers"
    EXPECTATION = "expectation"


class Cut(StrEnum):
    """Why a connection was ended that its client would have kept."""

    HEAD_TIMEOUT = "head_timeout"
    """A head that was begun did not end in time."""
    BODY_TIMEOUT = "body_timeout"
    """A body stopped coming."""
    WRITE_TIMEOUT = "write_timeout"
    """An answer was not taken."""
    TOO_MANY = "too_many"
    """There were as many as there may be."""
