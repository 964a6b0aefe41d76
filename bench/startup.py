"""What Tollgate costs to start and to hold: from exec to ready, and resident memory then."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
from figures import Figure, arguments, deliver
from processes import free_ports, running, server_cores, wait_until_ready, workbench

TOLLGATE = str(Path(sys.executable).with_name("tollgate"))
READY_MS = 1_000.0
RESIDENT_MB = 90.0


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="starts of either kind; 5, or 2 where it is to be quick")
    chosen = parser.parse_args()
    deliver(measure(chosen.rounds or (2 if chosen.quick else 5)), chosen.json)


def measure(rounds: int) -> list[Figure]:
    """Start it again and again: the first time in an empty directory, then in the one it left."""
    fresh, again, resident = [], [], []
    with workbench() as place:
        for number in range(rounds):
            directory = place / str(number)
            fresh.append(one_start(directory)[0])
            ready_ms, megabytes = one_start(directory)
            again.append(ready_ms)
            resident.append(megabytes)
    return [
        Figure.of("start to ready, first start (makes the database)", fresh, "ms", target=READY_MS),
        Figure.of("start to ready", again, "ms", target=READY_MS),
        Figure.of("resident memory when ready", resident, "MB", target=RESIDENT_MB),
    ]


def one_start(directory: Path) -> tuple[float, float]:
    """Milliseconds from exec until /readyz says 200, and megabytes resident then."""
    port, admin_port = free_ports()
    command = (TOLLGATE, "serve", "--data-dir", str(directory), "--port", str(port), "--admin-port", str(admin_port),
               "--upstream", "http://127.0.0.1:9/v1")  # fmt: skip
    begun = time.perf_counter()
    with running(*command, cores=server_cores()) as child:
        wait_until_ready(f"http://127.0.0.1:{admin_port}/readyz", child, begun)
        ready_ms = (time.perf_counter() - begun) * 1_000
        return ready_ms, psutil.Process(child.pid).memory_info().rss / 1e6


if __name__ == "__main__":
    main()
