"""The upstreams there are, how each of them is, and in which order they are asked."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from proxy.core.breaker import Breaker, BreakerPolicy, BreakerState
from proxy.core.errors import ModelNotFound, Overloaded
from proxy.core.retry_budget import RetryBudget
from proxy.core.routing import Candidate, identity_of, ordered, serving
from proxy.ports import Upstream

__all__ = ["KEY_REFUSED_REST_MS", "Site", "SiteKey", "Upstreams", "breaker_policy", "nobody_answers"]

KEY_REFUSED_REST_MS = 60_000
"""How long a key that upstream refuses, or whose quota is used up, is passed over where there is another."""
_LONGEST_REST_MS = 60_000
_SHORTEST_REST_MS = 1_000
_MOST_MODELS = 64
"""Models that one key is known to be out of rate for."""
_NEVER = 2**62
_PROBE_MS = 30_000
"""A probe is a request like any other: that its head takes a while says nothing yet."""


def breaker_policy(failures: int, rest_ms: int) -> BreakerPolicy:
    """Open after so many outages in a row, 0: never; rest so long, and up to ten times as long while probes fail."""
    return BreakerPolicy(failures or _NEVER, rest_ms, rest_ms * 10, _PROBE_MS)


@dataclass(slots=True, eq=False)
class SiteKey:
    """A way to call an upstream under one of its keys."""

    number: int
    """From 1, in the order in which they were configured."""
    call: Upstream
    _until_ms: int = 0
    _of_models: dict[str, int] = field(default_factory=dict)
    """Until when it rests for one model alone."""

    def rest(self, now_ms: int, wait_ms: int, model: str | None = None) -> None:
        """Pass it over for a while, a bounded one: nobody asks for it in the meantime what would show it mended.

        With `model` for that one alone.
        """
        until_ms = now_ms + min(max(wait_ms, _SHORTEST_REST_MS), _LONGEST_REST_MS)
        if model is None:
            self._until_ms = until_ms
            return
        self._of_models[model] = until_ms
        if len(self._of_models) > _MOST_MODELS:
            self._of_models = {name: each for name, each in self._of_models.items() if now_ms < each}
        if len(self._of_models) > _MOST_MODELS:
            del self._of_models[min(self._of_models, key=self._of_models.__getitem__)]

    def rests_until_ms(self, model: str = "") -> int:
        """From when on it is called for a model again."""
        return max(self._until_ms, self._of_models.get(model, 0)) if self._of_models else self._until_ms

    def is_resting(self, now_ms: int) -> bool:
        """Whether it is passed over, if only for one model."""
        return now_ms < max(self._until_ms, *self._of_models.values(), 0)


@dataclass(slots=True, eq=False)
class Site:
    """One upstream: what routing knows of it, its keys, and how it has been of late. Times are monotonic."""

    candidate: Candidate
    keys: tuple[SiteKey, ...]
    ask_for_usage: bool | None = None
    """Whether it is asked for the usage of a stream where the client did not; None: as the policy says."""
    breaker: Breaker = field(default_factory=lambda: Breaker(breaker_policy(20, 1_000)))
    budget: RetryBudget = field(default_factory=RetryBudget)
    _latest: int = 0

    @property
    def name(self) -> str:
        """Its name in metrics, logs and the ledger."""
        return self.candidate.name

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn under one of its keys."""
        return sum(key.call.waiting for key in self.keys)

    def resting(self, now_ms: int) -> int:
        """Keys that are passed over, if only for one model."""
        return sum(key.is_resting(now_ms) for key in self.keys)

    def key(self, now_ms: int, tried: Collection[SiteKey] = (), model: str = "") -> SiteKey | None:
        """The key to call a model under: of those that neither rest nor were tried, the least waited for, in turn."""
        if len(self.keys) == 1:
            key = self.keys[0]
            return key if now_ms >= key.rests_until_ms(model) and key not in tried else None
        count = len(self.keys)
        best = None
        for step in range(1, count + 1):
            key = self.keys[(self._latest + step) % count]
            if now_ms < key.rests_until_ms(model) or key in tried:
                continue
            if best is None or key.call.waiting < best.call.waiting:
                best = key
        if best is not None:
            self._latest = best.number - 1
        return best

    def soonest(self, model: str = "") -> SiteKey:
        """Of keys that all rest, the one that has rested most."""
        return min(self.keys, key=lambda key: key.rests_until_ms(model))


class Upstreams:
    """All of them; there is at least one."""

    __slots__ = ("_candidates", "_keeper", "_only", "_sites")

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}
        self._candidates = tuple(site.candidate for site in sites)
        plain = len(sites) == 1 and sites[0].candidate.models is None
        self._only = tuple(sites) if plain else None
        whole = [site for site in sites if site.candidate.models is None] or sites
        self._keeper = min(whole, key=lambda site: site.candidate.priority)

    @classmethod
    def single(cls, upstream: Upstream) -> Upstreams:
        """One upstream with one key, which serves every model."""
        return cls([Site(Candidate(upstream.name, upstream.identity), (SiteKey(1, upstream),))])

    def __iter__(self) -> Iterator[Site]:
        """Go through them as they were configured."""
        return iter(self._sites.values())

    def serve(self, model: str) -> bool:
        """Whether any of them has this model; one that is not named, they have."""
        return not model or self._only is not None or any(each.name_of(model) is not None for each in self._candidates)

    def identity(self, model: str) -> str:
        """What tells answers for a model from those of other upstreams."""
        if self._only is not None:
            return self._only[0].candidate.identity
        return identity_of(serving(self._candidates, model), model)

    def route(self, model: str, draw: float) -> tuple[Site, ...]:
        """Who is asked for a model, in this order; `draw` is in [0, 1). Raises `ModelNotFound`.

        What names no model is about something that is kept upstream: it is asked of one alone, always the same.
        """
        if self._only is not None:
            return self._only
        if not model:
            return (self._keeper,)
        order = ordered(serving(self._candidates, model), draw)
        if not order:
            raise ModelNotFound(model)
        return tuple(self._sites[each.name] for each in order)


def nobody_answers(route: Sequence[Site], now_ms: int) -> Overloaded:
    """Say that every upstream of a route rests after a run of failures, and when the first is asked again."""
    waits_ms = [
        site.breaker.asks_again_in_ms(now_ms) for site in route if site.breaker.state is not BreakerState.CLOSED
    ]
    return Overloaded("the upstream API has failed many times in a row", min(waits_ms, default=1))
