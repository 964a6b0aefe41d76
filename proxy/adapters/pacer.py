"""Whose call goes upstream next, and when: one pacer for each key of an upstream, in each worker.

All calls under the key wait in one lane: for this worker's part of its requests per minute, and, where upstream's
limits are shared or it has one of tokens, for one bucket of all workers: the limiter's, under a name no team can have,
settled with what each call has used.

Upstream's own limits are by model, and so is what it says of them (`core/pace.py`). A model that it complains of has a
lane of its own before that one, for as long as anything is held against it: at a lower pace, or held back altogether,
which an upstream without a limit here is as well. Other models do not notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from proxy.adapters.lane import FREE_TURN, Lane, PacerOptions
from proxy.adapters.upstream_bucket import SharedBucket
from proxy.core.fair_queue import QueueRefusal
from proxy.core.pace import hear
from proxy.ports import Clock, QueueWatch, Spawn, Turn

__all__ = ["FREE_TURN", "MOST_MODELS", "Pacer", "PacerOptions"]

MOST_MODELS = 64
"""Models with a lane of their own; any more share one."""


class _Unwatched:
    def waited(self, seconds: float) -> None:
        """Tell nobody."""

    def refused(self, reason: QueueRefusal) -> None:
        """Tell nobody."""


@dataclass(slots=True)
class Pacer:
    """Lets calls upstream go at their pace; a bounded number wait, each for a bounded time.

    `workers` is how many share the requests per minute; asked at each call. `bucket` is None where nothing has to be
    counted beside the pace. `watch` hears of each wait.
    """

    options: PacerOptions
    clock: Clock
    spawn: Spawn
    workers: Callable[[], int] = lambda: 1
    bucket: SharedBucket | None = None
    watch: QueueWatch = field(default_factory=_Unwatched)
    _whole: Lane = field(init=False)
    _models: dict[str, Lane] = field(default_factory=dict)
    _others: Lane | None = None
    """Of models beyond the number that are told apart."""
    _closed: bool = False

    def __post_init__(self) -> None:
        self._whole = self._lane(self.bucket)

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn, whatever the model."""
        return sum(len(lane.queue) for lane in self._lanes())

    def calls_per_minute(self, model: str = "") -> float | None:
        """The pace of a model now; None: there is none."""
        lane = self._slowed(model)
        return (self._whole if lane is None else lane).calls_per_minute or None

    def observe(self, status: int, headers: Mapping[str, str], model: str = "") -> None:
        """Hear the head of each answer, which may slow its model down; `headers` is case-insensitive."""
        heard = hear(status, headers, self.clock.now_ms())
        lane = self._slowed(model)
        if (heard.refused or heard.scarce) and lane is self._others:
            lane = self._slow(model)
        if lane is None:
            return
        lane.observe(heard)
        if lane.is_calm:
            self._models.pop(model, None)
            self._others = None if lane is self._others else self._others

    async def turn(
        self,
        team: str = "",
        weight: int = 1,
        tokens: int = 0,
        on_wait: Callable[[], None] = lambda: None,
        model: str = "",
    ) -> Turn:
        """Return when `team` may call `model`; what it returns is to be settled with the tokens it used.

        `on_wait` is called when it begins to wait. Raises `Overloaded` when too many wait, or it would take too long,
        and `StoreAway` where the bucket's policy says so.
        """
        if not self._models and self._others is None and self._whole.is_open:
            return FREE_TURN
        begun_ns: int | None = None
        until = 0.0

        def waits() -> float:
            nonlocal begun_ns, until
            if begun_ns is None:
                begun_ns = self.clock.monotonic_ns()
                until = asyncio.get_running_loop().time() + self.options.deadline_seconds
                on_wait()
            return until

        slowed = self._slowed(model)
        try:
            if slowed is not None:
                await slowed.turn(team, weight, 0, waits)
            try:
                return await self._whole.turn(team, weight, tokens, waits)
            except BaseException:
                if slowed is not None:
                    slowed.give_back()
                raise
        finally:
            if begun_ns is not None:
                self.watch.waited((self.clock.monotonic_ns() - begun_ns) / 1e9)

    def close(self) -> None:
        """Let go of all who wait, and of who comes from now on and would have to."""
        self._closed = True
        for lane in self._lanes():
            lane.close()

    def _lanes(self) -> Iterator[Lane]:
        yield self._whole
        yield from self._models.values()
        if self._others is not None:
            yield self._others

    def _slowed(self, model: str) -> Lane | None:
        """The lane of a model that something is held against."""
        return self._models.get(model, self._others) if self._models else self._others

    def _slow(self, model: str) -> Lane:
        if len(self._models) >= MOST_MODELS:
            for name in [name for name, lane in self._models.items() if lane.is_idle]:
                del self._models[name]
            if self._others is not None and self._others.is_idle:
                self._others = None
        if len(self._models) < MOST_MODELS:
            lane = self._models[model] = self._lane()
        else:
            lane = self._others = self._others or self._lane()
        return lane

    def _lane(self, bucket: SharedBucket | None = None) -> Lane:
        lane = Lane(self.options, self.clock, self.spawn, self.workers, self._has_room, self.watch, bucket)
        if self._closed:
            lane.close()
        return lane

    def _has_room(self, team: str) -> bool:
        """Whether one more of a team may wait; where all places are taken, the team with the most in a lane yields."""
        if self.waiting < self.options.max_waiting:
            return True
        crowded = max(self._lanes(), key=lambda lane: lane.queue.longest)
        gone = crowded.queue.make_room(team, sum(lane.queue.waiting(team) for lane in self._lanes()))
        if gone is None:
            return False
        crowded.let_go(gone, QueueRefusal.FULL)
        return True
