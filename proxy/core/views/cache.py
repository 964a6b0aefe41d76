"""The store of cached answers as programs are shown it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.cache_store import CacheStore

__all__ = ["CacheServerView", "CacheStoreView", "store_view"]


class CacheServerView(msgspec.Struct, frozen=True, kw_only=True):
    """A Redis that keeps answers, and perhaps more than that."""

    address: str
    used_bytes: int
    max_bytes: Annotated[int, Meta(description="0: without bound.")]
    policy: Annotated[str, Meta(description="What it throws away when memory is short, in its own words.")]
    evicted_keys: int


class CacheStoreView(msgspec.Struct, frozen=True, kw_only=True):
    """Where answers are kept: in each worker (`max_bytes` of them at most), in Redis, or nowhere."""

    kind: Literal["off", "memory", "redis"]
    max_bytes: int | UnsetType = UNSET
    servers: Annotated[list[CacheServerView] | None, Meta(description="Null: Redis did not answer.")] | UnsetType = (
        UNSET
    )


def store_view(store: CacheStore | None) -> CacheStoreView:
    """A store of answers; None: nothing is kept."""
    if store is None:
        return CacheStoreView(kind="off")
    if not store.in_redis:
        return CacheStoreView(kind="memory", max_bytes=store.max_bytes)
    if store.servers is None:
        return CacheStoreView(kind="redis", servers=None)
    servers = [
        CacheServerView(
            address=each.address,
            used_bytes=each.used_bytes,
            max_bytes=each.max_bytes,
            policy=each.policy,
            evicted_keys=each.evicted_keys,
        )
        for each in store.servers
    ]
    return CacheStoreView(kind="redis", servers=servers)
