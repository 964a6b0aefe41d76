"""The upstreams there are: who serves a model, and in which order they are asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.core.errors import ModelNotFound
from proxy.core.routing import Candidate, identity_of, ordered, serving
from proxy.ports import Upstream

__all__ = ["Site", "Upstreams"]


@dataclass(slots=True)
class Site:
    """One upstream: what routing knows of it, and a way to call it under each of its keys."""

    candidate: Candidate
    keys: tuple[Upstream, ...]

    @property
    def name(self) -> str:
        """Its name in metrics, logs and the ledger."""
        return self.candidate.name


class Upstreams:
    """All of them; there is at least one."""

    __slots__ = ("_sites",)

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}

    @classmethod
    def single(cls, upstream: Upstream) -> Upstreams:
        """One upstream with one key, which serves every model."""
        return cls([Site(Candidate(upstream.name, upstream.identity), (upstream,))])

    def __iter__(self) -> Iterator[Site]:
        """Go through them as they were configured."""
        return iter(self._sites.values())

    def serve(self, model: str) -> bool:
        """Whether any of them has this model."""
        return any(site.candidate.name_of(model) is not None for site in self._sites.values())

    def identity(self, model: str) -> str:
        """What tells answers for a model from those of other upstreams."""
        return identity_of(serving(self._candidates(), model), model)

    def route(self, model: str, draw: float) -> tuple[Site, ...]:
        """Who is asked for a model, in this order; `draw` is in [0, 1). Raises `ModelNotFound`."""
        order = ordered(serving(self._candidates(), model), draw)
        if not order:
            raise ModelNotFound(model)
        return tuple(self._sites[each.name] for each in order)

    def _candidates(self) -> tuple[Candidate, ...]:
        return tuple(site.candidate for site in self._sites.values())
