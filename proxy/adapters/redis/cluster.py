"""Redis Cluster: 16,384 slots, each held by one primary (Redis Cluster specification).

The map is read from any node, mended at once where a node answers MOVED, and read anew then and whenever a connection
is lost. Commands of several keys need one hash tag in all of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.connect import ask_once
from proxy.adapters.redis.multiplexer import Multiplexer, MultiplexerOptions, OnFailure
from proxy.adapters.redis.outcomes import ErrorReply, NeverSent, RedisFailure, Reply, Why
from proxy.adapters.redis.route import Facts, facts_of
from proxy.adapters.redis.single import stays_at
from proxy.adapters.redis.wire import Argument
from proxy.ports import Spawn

__all__ = ["Cluster", "Owned", "slots_of"]

_FIRST_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 2.0

Owned = tuple[int, int, str, int]
"""First slot, last slot, host and port of their primary; an empty host is that of the node that was asked."""


def slots_of(reply: Reply) -> tuple[Owned, ...]:
    """Read the answer to CLUSTER SLOTS. Raises `ValueError` for anything else."""
    return tuple(_ranges(reply))


def _ranges(reply: Reply) -> Iterator[Owned]:
    for item in reply if isinstance(reply, list) else [reply]:
        match item:
            case [int(first), int(last), [bytes() | None as host, int(port), *_], *_]:
                yield first, last, (host or b"").decode(), port
            case _:
                raise ValueError("not a range of slots")


class Cluster:
    """Keeps the promises of `RedisRoute` with one multiplexer for each primary."""

    def __init__(self, seeds: tuple[Address, ...], spawn: Spawn, options: MultiplexerOptions | None = None) -> None:
        self._seeds = seeds
        self._spawn = spawn
        self._options = options or MultiplexerOptions()
        self._nodes: dict[tuple[str, int], Multiplexer] = {}
        self._slots: list[Multiplexer | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._refresher: asyncio.Task[object] | None = None
        self._refreshing = False
        self._closed = False

    def route(self, key: str) -> Multiplexer:
        """The multiplexer of the primary that holds `key`."""
        node = self._slots[key_slot(key.encode())]
        if node is None:
            raise NeverSent(Why.CLOSED if self._closed else Why.AWAY, "no primary for this slot")
        return node

    async def execute(self, key: str, *args: Argument) -> Reply:
        """Send a command to where `key` is; follows MOVED and ASK once."""
        node = self.route(key)
        try:
            return await node.call(*args)
        except ErrorReply as reply:
            target = self._redirection(reply, node)
            if target is None:
                raise
            await target.connected(self._options.connect_seconds)
            return await self._again(target, reply, args)

    def post(self, key: str, *args: Argument, on_failure: OnFailure | None = None) -> bool:
        """Queue a command whose reply nobody waits for; follows MOVED and ASK once."""
        try:
            node = self.route(key)
        except NeverSent:
            return False

        def failed(failure: RedisFailure) -> None:
            target = self._redirection(failure, node)
            if target is None:
                if on_failure is not None:
                    on_failure(failure)
                return
            if isinstance(failure, ErrorReply) and failure.code == "ASK":
                target.post("ASKING")
            if not target.post(*args, on_failure=on_failure) and on_failure is not None:
                on_failure(NeverSent(Why.AWAY, str(target.address)))

        return node.post(*args, on_failure=failed)

    def primaries(self) -> tuple[Multiplexer, ...]:
        """Every primary that holds a slot."""
        return tuple({id(node): node for node in self._slots if node is not None}.values())

    async def locate(self) -> Address:
        """Any primary: a message goes to every node."""
        up = [node.address for node in self._nodes.values() if node.is_up and node.address is not None]
        return random.choice(up or self._seeds)  # noqa: S311 - spreads load, hides nothing

    async def facts(self) -> tuple[Facts, ...]:
        """What each primary says of itself."""
        return tuple([await facts_of(node) for node in self.primaries()])

    async def open(self) -> None:
        """Read the map and connect to every primary."""
        try:
            fresh = await self._refresh()
        except RedisFailure:
            self._refresh_later()
            raise
        results = await asyncio.gather(*(node.open() for node in fresh), return_exceptions=True)
        for failure in results:
            if isinstance(failure, BaseException):
                self._refresh_later()
                raise failure

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.wait([self._refresher])
        nodes = tuple(self._nodes.values())
        self._nodes.clear()
        self._slots = [None] * REDIS_CLUSTER_HASH_SLOTS
        await asyncio.gather(*(node.close() for node in nodes))

    # Redirections

    def _redirection(self, failure: RedisFailure, source: Multiplexer) -> Multiplexer | None:
        """Where a failed command should have gone; mends the map. None when the failure is no redirection."""
        if not isinstance(failure, ErrorReply) or failure.code not in {"MOVED", "ASK"} or self._closed:
            return None
        slot, _, where = failure.message.partition(" ")
        host, _, port = where.rpartition(":")
        if not (slot.isdigit() and int(slot) < REDIS_CLUSTER_HASH_SLOTS and port.isdigit()):
            return None
        address = source.address or self._seeds[0]
        before = len(self._nodes)
        node = self._node(host or address.host, int(port))
        if len(self._nodes) > before:
            self._spawn(node.open_later())
        if failure.code == "MOVED":
            self._slots[int(slot)] = node
            self._refresh_later()
        return node

    def _again(self, target: Multiplexer, reply: ErrorReply, args: tuple[Argument, ...]) -> asyncio.Future[Reply]:
        if reply.code == "ASK":
            # Holds for the next command of the connection, and nothing comes between two in one turn.
            target.post("ASKING")
        return target.call(*args)

    def _node(self, host: str, port: int) -> Multiplexer:
        node = self._nodes.get((host, port))
        if node is None:
            locate = stays_at(self._seeds[0].at(host, port))
            node = Multiplexer(locate, self._spawn, self._options, on_down=self._refresh_later)
            self._nodes[host, port] = node
        return node

    # The map

    async def _refresh(self) -> tuple[Multiplexer, ...]:
        """Read the map and adopt it; returns multiplexers that are new and to be opened."""
        reasons = []
        known = [node.address for node in self._nodes.values() if node.is_up and node.address is not None]
        for address in dict.fromkeys((*known, *self._seeds)):
            try:
                owned = slots_of(await ask_once(address, "CLUSTER", "SLOTS", seconds=self._options.connect_seconds))
            except NeverSent as failure:
                reasons.append(failure.where)
                continue
            except (RedisFailure, ValueError) as failure:
                reasons.append(f"{address}: {str(failure) or type(failure).__name__}")
                continue
            if owned:
                return self._adopt(owned, address)
            reasons.append(f"{address} knows no slots")
        raise NeverSent(Why.AWAY, f"no node has a map of the cluster ({'; '.join(reasons)})")

    def _adopt(self, owned: tuple[Owned, ...], asked: Address) -> tuple[Multiplexer, ...]:
        if self._closed:
            return ()
        before = set(self._nodes)
        slots: list[Multiplexer | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        present = set()
        for first, last, host, port in owned:
            where = (host or asked.host, port)
            present.add(where)
            slots[first : last + 1] = [self._node(*where)] * (last + 1 - first)
        self._slots = slots
        for where in before - present:
            self._spawn(self._nodes.pop(where).close())
        return tuple(self._nodes[where] for where in present - before)

    def _refresh_later(self) -> None:
        if not self._closed and not self._refreshing:
            self._refreshing = True
            self._spawn(self._keep_refreshing())

    async def _keep_refreshing(self) -> None:
        """Read the map until every primary in it is connected: an election takes its time."""
        self._refresher = asyncio.current_task()
        pause = _FIRST_PAUSE_SECONDS
        try:
            while not self._closed:
                try:
                    for node in await self._refresh():
                        await node.open_later()
                except RedisFailure:
                    pass
                else:
                    if all(node.is_up for node in self.primaries()):
                        return
                await asyncio.sleep(pause * (1 + random.random()) / 2)  # noqa: S311 - spreads load, hides nothing
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)
        finally:
            self._refresher = None
            self._refreshing = False
