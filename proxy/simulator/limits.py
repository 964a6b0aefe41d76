"""Rate limits of the simulated upstream, with OpenAI's figures.

A token bucket per model and dimension: capacity is the limit, refill is continuous over a minute,
wait = (used + requested - limit) x window / limit, reset = used x window / limit. Exact in integers: a level is kept in
units of 1/60000, of which `limit` drain each millisecond. Tokens are not refunded when an answer turns out shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.simulator.refusal import Refusal

__all__ = ["Limits", "go_duration"]

_WINDOW_MS = 60_000
# What an account without limits of its own is shown; never enforced.
_OPEN_REQUESTS = {"limit": "30000", "remaining": "29999", "reset": "2ms"}
_OPEN_TOKENS = {"limit": "150000000", "remaining": "149999990", "reset": "0s"}
_NAMES = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}


def go_duration(total_ms: int) -> str:
    """A duration as Go prints it: `0s`, `12ms`, `51.189s`, `6m0s`, `1h0m0s`."""
    if total_ms < 1_000:
        return f"{total_ms}ms" if total_ms else "0s"
    seconds, ms = divmod(total_ms, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{ms:03d}".rstrip("0") if ms else ""
    text = f"{seconds}{fraction}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


@dataclass(slots=True)
class _Bucket:
    limit: int
    level: int = 0
    at_ms: int = 0

    def drain(self, now_ms: int) -> None:
        self.level = max(0, self.level - (now_ms - self.at_ms) * self.limit)
        self.at_ms = now_ms

    def wait_ms(self, amount: int) -> int:
        excess = self.level + (amount - self.limit) * _WINDOW_MS
        return max(0, -(-excess // self.limit))

    def shown(self) -> dict[str, str]:
        used = -(-self.level // _WINDOW_MS)
        return {
            "limit": str(self.limit),
            "remaining": str(max(0, self.limit - used)),
            "reset": go_duration(self.level // self.limit),
        }


class Limits:
    """The buckets of all models. A refused request is not charged, one that fails later is."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._buckets: dict[str, dict[str, _Bucket]] = {}
        self._open = _headers(_OPEN_REQUESTS, _OPEN_TOKENS)

    @property
    def open_headers(self) -> dict[str, str]:
        """The six headers of an answer that no bucket took part in."""
        return self._open

    def take(self, model: str, tokens: int, now_ms: int) -> dict[str, str]:
        """Charge one request of `tokens` tokens and return the six headers.

        Raises `Refusal` 429 with the same headers, `Retry-After` and `retry-after-ms`. `now_ms` must not go backwards.
        """
        buckets = self._buckets.get(model) or self._fill(model, now_ms)
        if not buckets:
            return self._open
        amounts = {"requests": 1, "tokens": tokens}
        for bucket in buckets.values():
            bucket.drain(now_ms)
        waits = {name: bucket.wait_ms(amounts[name]) for name, bucket in buckets.items()}
        name = max(waits, key=waits.__getitem__)
        if waits[name]:
            raise self._refusal(model, name, buckets, amounts[name], waits[name])
        for name, bucket in buckets.items():
            bucket.level += amounts[name] * _WINDOW_MS
        return self._shown(buckets)

    def clear(self) -> None:
        """Empty every bucket."""
        self._buckets.clear()

    def _fill(self, model: str, now_ms: int) -> dict[str, _Bucket]:
        buckets = {name: _Bucket(limit, 0, now_ms) for name, limit in self._limits.items() if limit is not None}
        if buckets:
            self._buckets[model] = buckets
        return buckets

    @staticmethod
    def _shown(buckets: dict[str, _Bucket]) -> dict[str, str]:
        requests, tokens = buckets.get("requests"), buckets.get("tokens")
        return _headers(
            requests.shown() if requests else _OPEN_REQUESTS,
            tokens.shown() if tokens else _OPEN_TOKENS,
        )

    def _refusal(self, model: str, name: str, buckets: dict[str, _Bucket], amount: int, wait_ms: int) -> Refusal:
        bucket = buckets[name]
        headers = self._shown(buckets)
        if amount > bucket.limit:
            message = f"Request too large for {model} on {_NAMES[name]}: Limit {bucket.limit}, Requested {amount}."
            return Refusal(429, message, name, None, "rate_limit_exceeded", headers)
        headers["Retry-After"] = str(max(1, -(-wait_ms // 1_000)))
        headers["retry-after-ms"] = str(wait_ms)
        message = (
            f"Rate limit reached for {model} on {_NAMES[name]}: Limit {bucket.limit}, "
            f"Used {-(-bucket.level // _WINDOW_MS)}, Requested {amount}. Please try again in {go_duration(wait_ms)}."
        )
        return Refusal(429, message, name, None, "rate_limit_exceeded", headers)


def _headers(requests: dict[str, str], tokens: dict[str, str]) -> dict[str, str]:
    kinds = ("limit", "remaining", "reset")
    return {f"x-ratelimit-{kind}-requests": requests[kind] for kind in kinds} | {
        f"x-ratelimit-{kind}-tokens": tokens[kind] for kind in kinds
    }
