"""Response headers as OpenAI sends them."""

from __future__ import annotations

from collections.abc import Mapping

from multidict import CIMultiDict

from proxy.simulator.words import digest_of

__all__ = ["EVENT_STREAM", "JSON", "Serials", "head"]

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

_ORGANIZATION = "org-simulated"
_COOKIE_END = "path=/; HttpOnly; Secure; SameSite=None"


class Serials:
    """Ids of answers: a sequence that follows from the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def next(self) -> str:
        """Sixty-four hexadecimal digits, never the same twice."""
        self._count += 1
        return digest_of("serial", self._seed, self._count).hex()


def head(
    serial: str,
    *,
    content_type: str,
    processing_ms: int,
    model: str,
    extra: Mapping[str, str],
) -> CIMultiDict[str]:
    """The headers of one answer; `extra` comes last and takes the place of what has the same name."""
    headers = CIMultiDict(
        [
            ("Content-Type", content_type),
            ("openai-organization", _ORGANIZATION),
            ("openai-processing-ms", str(processing_ms)),
            ("openai-version", "2020-10-01"),
            ("x-request-id", f"req_{serial[:32]}"),
            ("set-cookie", f"__cf_bm={serial[:43]}; {_COOKIE_END}"),
            ("set-cookie", f"_cfuvid={serial[21:]}; {_COOKIE_END}"),
            ("server", "cloudflare"),
            ("cf-cache-status", "DYNAMIC"),
            ("x-content-type-options", "nosniff"),
        ]
    )
    if model:
        headers["openai-model"] = model
    headers.update(extra)
    return headers
