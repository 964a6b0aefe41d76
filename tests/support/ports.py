"""Ports of the loopback for servers that have to be told theirs."""

from __future__ import annotations

import itertools
import os
import random
import socket

__all__ = ["free_port"]

_LOWEST, _EACH, _DRAWERS = 12_000, 500, 20
_ABOVE = 10_000


def free_port() -> int:
    """A port that is free now, and so is the one 10,000 above it: a node of a cluster listens on both.

    It stays free until whoever is told of it has bound it: both are below those that the kernel gives to connections
    and to servers that take any, workers of one run draw from different ones, and none is drawn twice in a row.
    """
    for _ in range(_EACH):
        port = next(_ports)
        try:
            for number in (port, port + _ABOVE):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    raise AssertionError("no free port")


def _own_ports() -> range:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    drawer = 1 + int(worker) % (_DRAWERS - 1) if worker.isdigit() else 0
    return range(_LOWEST + drawer * _EACH, _LOWEST + (drawer + 1) * _EACH)


_ports = itertools.islice(itertools.cycle(_own_ports()), random.SystemRandom().randrange(_EACH), None)
