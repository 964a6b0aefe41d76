"""A simulated OpenAI API: latency, streams, limits, faults and exact usage, without a key or a network."""

from __future__ import annotations

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.running import RunningSimulator, start
from proxy.simulator.server import make_app

__all__ = ["Behaviour", "RunningSimulator", "make_app", "start"]
