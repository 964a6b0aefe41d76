"""Which upstreams answer for a model, and in which order they are asked.

Those of the smallest `priority` come first, drawn by `weight`; the others follow, priority by priority: that is the
chain to fall back along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Candidate", "identity_of", "ordered", "serving"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An upstream as routing knows it."""

    name: str
    identity: str
    """What tells its answers from another's: the base URL, and what else names another API. Holds no secret."""
    weight: int = 1
    """How often it is drawn against others of its priority."""
    priority: int = 0
    """The smaller, the earlier."""
    models: Mapping[str, str] | None = None
    """What it serves, by canonical name, and what each is called there; None: everything, under its own name."""

    def name_of(self, model: str) -> str | None:
        """What it calls a model, None where it does not serve it."""
        return model if self.models is None else self.models.get(model)


def serving(candidates: Sequence[Candidate], model: str) -> tuple[Candidate, ...]:
    """Those that serve a model, as they stand."""
    return tuple(each for each in candidates if each.name_of(model) is not None)


def ordered(candidates: Sequence[Candidate], draw: float) -> tuple[Candidate, ...]:
    """Put candidates in the order in which they are asked; `draw`, in [0, 1), decides all that weight leaves open.

    Each place goes to one of those left with a chance of its weight in their sum (Efraimidis and Spirakis, 2006, give
    the same order by keys). What is left of the draw after one choice, stretched to [0, 1) again, makes the next.
    """
    if len(candidates) < 2:
        return tuple(candidates)
    order: list[Candidate] = []
    for _, group in groupby(sorted(candidates, key=lambda each: each.priority), key=lambda each: each.priority):
        left = list(group)
        while len(left) > 1:
            at, draw = _drawn([each.weight for each in left], draw)
            order.append(left.pop(at))
        order += left
    return tuple(order)


def _drawn(weights: Sequence[int], draw: float) -> tuple[int, float]:
    """The index that a draw falls on, and the draw that is left."""
    point = draw * sum(weights)
    for at, weight in enumerate(weights):
        if point < weight:
            return at, point / weight
        point -= weight
    return len(weights) - 1, 0.0  # the sum was rounded up


def identity_of(candidates: Sequence[Candidate], model: str) -> str:
    """What tells answers for a model from those that other upstreams would give.

    One upstream that calls the model by its own name is its own identity. Several are all of theirs, whoever is asked
    in the end: an answer from the cache may be any one's that is configured now, and none's that no longer is.
    """
    if len(candidates) == 1 and candidates[0].name_of(model) == model:
        return candidates[0].identity
    return "\n".join(sorted(f"{each.identity} {each.name_of(model)}" for each in candidates))
