"""The pacers of one worker: one for each key of each upstream."""

from __future__ import annotations

from collections.abc import Callable

from proxy.adapters.pacer import Pacer, PacerOptions
from proxy.adapters.upstream_bucket import SharedBucket
from proxy.ports import Clock, Limiter, QueueWatch, Spawn

__all__ = ["Pacing"]


class Pacing:
    """Makes them, and speaks for all of them.

    `shared`: other processes call upstream under the same keys, and are charged to the same buckets of `limiter`.
    """

    def __init__(
        self,
        limiter: Limiter,
        clock: Clock,
        spawn: Spawn,
        watch: QueueWatch,
        workers: Callable[[], int] = lambda: 1,
        *,
        shared: bool = False,
    ) -> None:
        self._limiter = limiter
        self._clock = clock
        self._spawn = spawn
        self._watch = watch
        self._workers = workers
        self._shared = shared
        self._pacers: list[Pacer] = []

    def pacer(self, name: str, options: PacerOptions, tokens_per_minute: int | None = None) -> Pacer:
        """Make the pacer of one key; `name` is the key's own, and the same in every process.

        Requests of one process are counted by the pace itself; a bucket beside it counts tokens, and what several
        processes do together.
        """
        bucket = None
        requests = options.requests_per_minute
        if tokens_per_minute is not None or (self._shared and requests is not None):
            bucket = SharedBucket(self._limiter, name, requests, tokens_per_minute)
        pacer = Pacer(options, self._clock, self._spawn, self._workers, bucket, self._watch)
        self._pacers.append(pacer)
        return pacer

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn, whatever the key."""
        return sum(pacer.waiting for pacer in self._pacers)

    def close(self) -> None:
        """Let go of all who wait."""
        for pacer in self._pacers:
            pacer.close()
