"""`make bench`: every measurement in turn, each a script of its own; then one table of all that has a target.

A section takes `--json FILE` and `--quick`, prints its own table, and writes the list of figures that `figures.py`
describes: `{"what", "value", "unit", "target": number | null, "better": "more" | "less", "spread", "quiet"}`. All lists
together, with what the machine is, become `bench/results/bench.json`; each is beside it under its section's name.

Absolute figures move with the machine; compare only figures of one run. The exit status says whether all sections ran,
not whether targets were met.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from figures import Figure, read, show
from processes import program

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SECTIONS = {
    "startup": "Starting",
    "steps": "Steps of the line, in microseconds",
    "calls": "Calling upstream, beside aiohttp's session",
    "limiter": "Deciding: one limit, 64 callers",
    "cache": "Sealing an answer for Redis, and opening it",
    "ledger": "Accounting: the spool, the database, a report over many events",
    "passing": "Passing on, beside a bare server",
    "hits": "Answering from the cache, and refusing, beside a bare server",
    "workers": "One worker and two",
    "streams": "Streams",
    "stalls": "Stalls of the event loop",
    "bodies": "Large bodies",
    "growth": "What does not grow with teams, keys, events and label sets",
    "memory": "Memory, at the start and after many requests",
}
"""Scripts and what they measure, in this order."""
OPTIONS = {"ledger": ("--events", "100000")}
"""What sections are told beside: reports over a million events are in the section on growth, too."""
LIBRARIES = ("aiohttp", "uvloop", "msgspec", "redis", "hiredis", "sqlalchemy", "prometheus-client")
SECTION_SECONDS = 240.0
END_SECONDS = 60.0


def main() -> int:
    """Run the sections; 0 when all of them ran to their end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: to see that it runs")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--json", type=Path, default=RESULTS / "bench.json", metavar="FILE")
    chosen = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _end)
    began = time.monotonic()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, load {about['load_before']}")
    figures: dict[str, list[Figure]] = {}
    failed: list[str] = []
    seconds: dict[str, tuple[float, float]] = {}
    for name in chosen.only or SECTIONS:
        print(f"\n{SECTIONS[name]} ({name})\n", flush=True)
        section_began, cpu_before = time.monotonic(), cpu_of_children()
        seen = run_section(name, chosen.json.parent, quick=chosen.quick)
        seconds[name] = round(time.monotonic() - section_began, 1), round(cpu_of_children() - cpu_before, 1)
        if seen is None:
            failed.append(name)
        else:
            figures[name] = seen
    took = time.monotonic() - began
    conclude(figures)
    written = {
        "machine": about | {"load_after": load()},
        "quick": chosen.quick,
        "seconds": {name: {"took": each[0], "cpu": each[1]} for name, each in seconds.items()},
        "failed": failed,
        "sections": {name: [asdict(each) for each in seen] for name, seen in figures.items()},
    }
    chosen.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print("\nseconds (of CPU): " + ", ".join(f"{name} {each[0]:.0f} ({each[1]:.0f})" for name, each in seconds.items()))
    print(f"{took:.0f} s; {chosen.json}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_section(name: str, results: Path, *, quick: bool) -> list[Figure] | None:
    """What a section measured; None when it failed, or took too long."""
    written = results / f"{name}.json"
    results.mkdir(parents=True, exist_ok=True)
    written.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(HERE / f"{name}.py"),
        "--json",
        str(written),
        *(["--quick"] if quick else OPTIONS.get(name, ())),
    ]
    # Out of reach of Ctrl-C, which we hear alone: told twice to end, a section might leave before its servers do.
    child = subprocess.Popen(command, start_new_session=True)
    try:
        status = child.wait(timeout=SECTION_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name} took more than {SECTION_SECONDS:.0f} s", file=sys.stderr)
        status = -1
    finally:
        if child.poll() is None:
            leave(child)
    return read(written) if status == 0 else None


def leave(child: subprocess.Popen[bytes]) -> None:
    """End a section, which ends the servers that it started; wait for that."""
    child.terminate()
    try:
        child.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def conclude(figures: dict[str, list[Figure]]) -> None:
    """One table of all that has a target."""
    print("\nAll that has a target; noisy: other work on the machine was in the way\n")
    show(each for seen in figures.values() for each in seen if each.target is not None)


def cpu_of_children() -> float:
    """Seconds of CPU of all sections that ended, and of what they started."""
    times = os.times()
    return times.children_user + times.children_system


def machine() -> dict[str, object]:
    """What it ran on, and what it ran."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernel": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "programs": {name: said(program(name) or name, "-v") for name in ("nginx", "wrk", "redis-server")},
        "commit": said("git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"),
        "load_before": load(),
    }


def processor() -> str:
    """Its name, as the kernel has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load() -> float | None:
    """How many processes wanted a core in the last minute: what is more than 0 at the start disturbs."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def version(name: str) -> str | None:
    """Of a library; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def said(*command: str) -> str | None:
    """The first line a command prints; None where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return ((done.stdout or done.stderr).splitlines() or [""])[0].strip() or None


def _end(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
