"""Which upstream a request is sent to next, under which key, and after which wait; the rules are `core/retry.py`'s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from proxy.core.errors import Overloaded
from proxy.core.retry import Remedy, RetryPolicy, next_wait_ms
from proxy.pipeline.upstreams import Site, SiteKey, nobody_answers

__all__ = ["Stop", "Tour"]


@dataclass(slots=True, eq=False)
class Stop:
    """One call to make; nobody changes it, but to freeze it takes longer than to make it."""

    site: Site
    key: SiteKey
    wait_ms: int = 0
    """Before it."""


@dataclass(frozen=True, slots=True)
class _Again:
    site: Site
    key: SiteKey
    not_before_ms: int | None


class Tour:
    """The way of one request. First everybody is asked once, without waiting; then those are whom a wait may mend.

    Whose breaker is open is passed over, and so is a key that rests, unless all do and nobody was asked yet. Each call
    of an upstream that this request has called before comes out of that upstream's retry budget. Times are monotonic
    milliseconds.
    """

    __slots__ = ("_again", "_called", "_calls", "_failed", "_full", "_model", "_policy", "_refused", "_remedy",
                 "_route", "_tried", "_waits")  # fmt: skip

    def __init__(
        self, route: Sequence[Site], policy: RetryPolicy, on_refused: Callable[[str], None], model: str = ""
    ) -> None:
        """`on_refused` is told the name of an upstream whose budget has no room for a retry."""
        self._route = route
        self._policy = policy
        self._refused = on_refused
        self._model = model
        self._calls = 0
        self._waits = 0
        self._failed: Site | None = None
        self._remedy: Remedy | None = None
        self._again: list[_Again] = []
        self._called: set[Site] = set()
        self._full: dict[Site, Overloaded] = {}
        self._tried: set[SiteKey] = set()

    def next(self, now_ms: int, elapsed_ms: int, jitter: float) -> Stop | None:
        """The next call, None when there is none that would help."""
        if not self._calls and not self._full:
            # Nearly every request needs no more than this.
            site = self._route[0]
            if site.breaker.would_admit(now_ms) and (key := site.key(now_ms, model=self._model)) is not None:
                return Stop(site, key)
        if self._calls >= self._policy.max_attempts or (self._calls and self._remedy is None):
            return None
        for stop in self._possible(now_ms, elapsed_ms, jitter):
            if stop.site not in self._called:
                return stop
            if stop.site.budget.take(now_ms):
                self._waits += stop.wait_ms > 0 or stop.key in self._tried
                return stop
            self._refused(stop.site.name)
            self._give_up(stop.site)
        return None

    def called(self, stop: Stop, now_ms: int) -> None:
        """Note that the call is being made."""
        self._calls += 1
        if stop.site not in self._called:
            self._called.add(stop.site)
            stop.site.budget.requested(now_ms)
        self._tried.add(stop.key)

    def failed(self, stop: Stop, remedy: Remedy | None, asked_ms: int | None, now_ms: int) -> None:
        """Note how the call went; `asked_ms` is how long upstream asks to be left alone."""
        self._failed, self._remedy = stop.site, remedy
        self._again = [each for each in self._again if each.key is not stop.key]
        if remedy is not None and remedy.again:
            self._again.append(_Again(stop.site, stop.key, now_ms + asked_ms if asked_ms else None))

    def full(self, stop: Stop, error: Overloaded) -> None:
        """Note that no call could be made there, for want of a turn."""
        self._full[stop.site] = error
        self._give_up(stop.site)

    def nobody(self, now_ms: int) -> Overloaded:
        """Say why no call was made at all: nobody had a turn to give, or all rest after a run of failures."""
        return next(iter(self._full.values()), None) or nobody_answers(self._route, now_ms)

    def _possible(self, now_ms: int, elapsed_ms: int, jitter: float) -> Iterator[Stop]:
        """Calls that may be made now, the best first."""
        remedy, failed = self._remedy, self._failed
        if failed is not None and remedy is not None and remedy.other_key and self._is_open(failed, now_ms):
            key = failed.key(now_ms, self._tried, self._model)
            if key is not None:
                yield Stop(failed, key)
        fresh = [site for site in self._route if site not in self._called and self._is_open(site, now_ms)]
        for site in fresh:
            key = site.key(now_ms, model=self._model)
            if key is not None:
                yield Stop(site, key)
        if not self._calls:
            for site in fresh:
                yield Stop(site, site.soonest(self._model))
        for each in sorted(self._again, key=lambda each: each.not_before_ms or 0):
            if each not in self._again or not self._is_open(each.site, now_ms):
                continue
            asked_ms = max(0, each.not_before_ms - now_ms) if each.not_before_ms is not None else None
            wait_ms = next_wait_ms(self._policy, self._waits, elapsed_ms, asked_ms, jitter)
            if wait_ms is not None:
                yield Stop(each.site, each.key, wait_ms)

    def _is_open(self, site: Site, now_ms: int) -> bool:
        return site not in self._full and site.breaker.would_admit(now_ms)

    def _give_up(self, site: Site) -> None:
        self._again = [each for each in self._again if each.site is not site]
