"""What the simulated account keeps: things by id, the newest thousand of each kind, and lists of them by page."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from proxy.simulator.endpoint import Static, object_of
from proxy.simulator.refusal import Refusal

__all__ = ["Kept", "page_of"]

_MOST = 1_000
_Thing = TypeVar("_Thing")


class Kept(Generic[_Thing]):
    """Things of one kind, in the order in which they came."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._things: OrderedDict[str, _Thing] = OrderedDict()

    def add(self, name: str, thing: _Thing) -> None:
        """Keep a thing, in the place of one with the same id; the oldest goes when there are too many."""
        self._things[name] = thing
        if len(self._things) > _MOST:
            self._things.popitem(last=False)

    def get(self, name: str) -> _Thing:
        """The thing of that id. Raises `Refusal` 404."""
        if name not in self._things:
            raise Refusal(404, f"No such {self._kind} object: {name}", param="id")
        return self._things[name]

    def remove(self, name: str) -> _Thing:
        """Forget a thing, and return it. Raises `Refusal` 404."""
        thing = self.get(name)
        del self._things[name]
        return thing

    def clear(self) -> None:
        """Forget all."""
        self._things.clear()

    def page(
        self,
        query: Mapping[str, str],
        show: Callable[[_Thing], dict[str, object]],
        *,
        limit: int,
        order: str = "desc",
        only: Callable[[_Thing], bool] = lambda _: True,
    ) -> Static:
        """One page of a list, as `after`, `limit` and `order` of the query ask for it."""
        return page_of(map(show, filter(only, self._things.values())), query, limit=limit, order=order)


def page_of(
    shown: Iterable[dict[str, object]], query: Mapping[str, str], *, limit: int, order: str = "desc", most: int = 10_000
) -> Static:
    """One page of `shown`, which comes oldest first. Raises `Refusal` for a query that means nothing."""
    entries = list(shown)
    wanted = query.get("order", order)
    if wanted not in {"asc", "desc"}:
        raise Refusal(400, f"Invalid value for 'order': '{wanted}'.", param="order", code="invalid_value")
    if wanted == "desc":
        entries.reverse()
    count = query.get("limit", str(limit))
    if not (count.isascii() and count.isdigit()) or not 1 <= int(count) <= most:
        raise Refusal(400, f"Invalid value for 'limit': must be within 1..{most}.", param="limit", code="invalid_value")
    if after := query.get("after"):
        at = next((index for index, entry in enumerate(entries) if entry["id"] == after), None)
        if at is None:
            raise Refusal(400, f"No such object in the list: {after}", param="after", code="invalid_value")
        entries = entries[at + 1 :]
    page = entries[: int(count)]
    return object_of(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(page) < len(entries),
        }
    )
