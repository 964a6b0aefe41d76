"""What Tollgate costs to start and to hold: from exec to ready, and resident memory then.

Absolute figures move with the machine; compare only figures of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

READY_WITHIN_SECONDS = 20.0
POLL_SECONDS = 0.002
TOLLGATE = str(Path(sys.executable).with_name("tollgate"))


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    median: float
    spread: tuple[float, float]
    unit: str
    target: str


def main() -> None:
    """Measure, print, and write the same as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7, help="starts to take the median of")
    arguments.add_argument("--json", type=Path, default=Path("bench/results/startup.json"))
    chosen = arguments.parse_args()
    figures = start_up(chosen.rounds)
    for figure in figures:
        low, high = figure.spread
        print(
            f"{figure.what:<44} {figure.median:8.1f} {figure.unit:<4} ({low:.1f} .. {high:.1f})  target {figure.target}"
        )
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


def start_up(rounds: int) -> list[Figure]:
    """Start it again and again: the first time in an empty directory, then in the one it left."""
    fresh, again, resident = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="tollgate-bench-") as directory:
            fresh.append(one_start(directory)[0])
            ready_ms, megabytes = one_start(directory)
            again.append(ready_ms)
            resident.append(megabytes)
    return [
        figure("start to ready, first start (makes the database)", fresh, "ms", "< 1000"),
        figure("start to ready", again, "ms", "< 1000"),
        figure("resident memory when ready", resident, "MB", "< 90"),
    ]


def one_start(directory: str) -> tuple[float, float]:
    """Milliseconds from exec until /readyz says 200, and megabytes resident then."""
    port, admin_port = free_ports()
    command = [TOLLGATE, "serve", "--data-dir", directory, "--port", str(port), "--admin-port", str(admin_port),
               "--upstream", "http://127.0.0.1:9/v1"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOLLGATE_", "OPENAI_"))}
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://127.0.0.1:{admin_port}/readyz", process, begun)
        ready_ms = (time.perf_counter() - begun) * 1_000
        return ready_ms, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], begun: float) -> None:
    """Poll until it answers 200; it is a failure when it does not in time."""
    while time.perf_counter() - begun < READY_WITHIN_SECONDS:
        if process.poll() is not None:
            raise SystemExit(f"tollgate exited with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - our own loopback listener
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(POLL_SECONDS)
    raise SystemExit("tollgate was not ready in time")


def figure(what: str, values: list[float], unit: str, target: str) -> Figure:
    """Median and spread of what was measured."""
    return Figure(what, statistics.median(values), (min(values), max(values)), unit, target)


def free_ports() -> tuple[int, int]:
    """Two loopback ports that nothing listens on."""
    import socket  # noqa: PLC0415 - wanted here alone

    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


if __name__ == "__main__":
    main()
