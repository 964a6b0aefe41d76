"""A guard against slow change that is no timing: instructions of the core steps, held to those that were recorded.

`python bench/count.py` runs `counted.py` under callgrind, each step so many times and twice as often; the difference is
the step's alone. A step that takes 5 % more or less than recorded in `counts.json` fails, and so does one that is
recorded and gone, or new and not recorded: `--record` writes them down. Counts hold for one build of Python and one set
of libraries; with others nothing is compared, and the exit status says so.

Exit status: 0 all within 5 %; 1 some are not, or there is no valgrind; 3 recorded with something else, not comparable.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Verdict", "compare", "count", "differences", "environment"]

HERE = Path(__file__).parent
RECORDED, STEPS = HERE / "counts.json", HERE / "counted.py"
TOLERANCE = 0.05
TIMES = 100
NOT_COMPARABLE = 3
LIBRARIES = ("msgspec", "multidict", "prometheus-client")
"""What the steps spend instructions in, beside Python."""
INSTALL = "valgrind is not installed; install it: apt-get install valgrind (or dnf, apk, brew)"
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one step stands to what was recorded of it."""

    name: str
    recorded: float | None
    counted: float | None

    @property
    def change(self) -> float | None:
        """As a part of what was recorded; None: one of both is missing."""
        if self.recorded is None or self.counted is None:
            return None
        return self.counted / self.recorded - 1

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance."""
        return self.change is not None and abs(self.change) <= TOLERANCE

    def told(self) -> str:
        """The verdict in words."""
        if self.recorded is None:
            return "not recorded"
        if self.change is None:
            return "GONE"
        return f"{self.change:+.1%}" if self.holds else f"{self.change:+.1%} {'MORE' if self.change > 0 else 'LESS'}"


def compare(recorded: Mapping[str, float], counted: Mapping[str, float]) -> list[Verdict]:
    """Every step that is recorded or counted, in this order."""
    names = dict.fromkeys((*recorded, *counted))
    return [Verdict(name, recorded.get(name), counted.get(name)) for name in names]


def environment() -> dict[str, str]:
    """What counts depend on."""
    python = f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}"
    libraries = {name: version(name) for name in LIBRARIES}
    return {"python": python, "architecture": platform.machine(), "libc": " ".join(platform.libc_ver()), **libraries}


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """In what two environments differ, in words."""
    names = dict.fromkeys((*one, *other))
    return [
        f"{name}: {one.get(name, 'none')}, here {other.get(name, 'none')}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def count(script: Path = STEPS, times: int = TIMES) -> dict[str, float]:
    """Instructions of one run of each step of a script. Raises `CalledProcessError` with what that said."""
    with tempfile.TemporaryDirectory(prefix="tollgate-count-") as directory:
        out = Path(directory) / "counts"
        valgrind = ("valgrind", "--tool=callgrind", "--dump-before=getpgrp", "--combine-dumps=yes")
        child = (sys.executable, str(script), "--times", str(times))
        command = [*valgrind, f"--callgrind-out-file={out}", *child]
        # The order of a set, and what is looked up in it, is the same in every run.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        fixed = kept | {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=fixed, check=True, capture_output=True, text=True)
        totals = [int(each) for each in _TOTALS.findall(out.read_text(encoding="utf-8"))]
    return shared_out(json.loads(done.stdout), totals, times)


def shared_out(names: Sequence[str], totals: Sequence[int], times: int) -> dict[str, float]:
    """What each step took, of the instructions of every part: before it, `times` runs, between, twice as many runs."""
    if len(totals) != 4 * len(names) + 1:
        raise ValueError(f"{len(totals)} parts of {len(names)} steps")
    return {name: (totals[4 * at + 3] - totals[4 * at + 1]) / times for at, name in enumerate(names)}


def show(verdicts: Sequence[Verdict]) -> None:
    """The table."""
    print(f"{'instructions of one run':44} {'recorded':>10} {'counted':>10}")
    for each in verdicts:
        recorded, counted = ("" if value is None else f"{value:,.0f}" for value in (each.recorded, each.counted))
        print(f"{each.name:44} {recorded:>10} {counted:>10}  {each.told()}")


def show_counts(counted: Mapping[str, float]) -> None:
    """What was counted, beside nothing."""
    print(f"{'instructions of one run':44} {'counted':>10}")
    for name, value in counted.items():
        print(f"{name:44} {value:10,.0f}")


def main() -> int:
    """Count, print, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write what is counted to bench/counts.json")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="count N times, and print the spread alone")
    chosen = parser.parse_args()
    if shutil.which("valgrind") is None:
        print(INSTALL, file=sys.stderr)
        return 1
    try:
        runs = [count() for _ in range(chosen.repeat or 1)]
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    if chosen.repeat:
        return show_spread(runs)
    if chosen.record:
        return record(runs[0], environment())
    return judge(json.loads(RECORDED.read_text(encoding="utf-8")), runs[0], environment())


def record(counted: Mapping[str, float], here: Mapping[str, str], file: Path = RECORDED) -> int:
    """Write down what was counted, and with what; returns the exit status."""
    whole = {name: round(value) for name, value in counted.items()}
    file.write_text(json.dumps({"environment": here, "instructions": whole}, indent=2) + "\n", encoding="utf-8")
    show_counts(counted)
    print(f"\nrecorded in {file.name}")
    return 0


def judge(kept: Mapping[str, Any], counted: Mapping[str, float], here: Mapping[str, str]) -> int:
    """Print how what was counted stands to what is recorded; returns the exit status."""
    if others := differences(kept["environment"], here):
        show_counts(counted)
        print("\nnot comparable: what counts depend on is another than when they were recorded")
        print("\n".join(f"  {each}" for each in others))
        return NOT_COMPARABLE
    verdicts = compare(kept["instructions"], counted)
    show(verdicts)
    broken = [each.name for each in verdicts if not each.holds]
    if broken:
        print(f"\nnot within {TOLERANCE:.0%}: {', '.join(broken)}")
        print("Where that is meant, write it down: make bench-count ARGS=--record")
        return 1
    print(f"\nall within {TOLERANCE:.0%} of what is recorded")
    return 0


def show_spread(runs: Sequence[Mapping[str, float]]) -> int:
    """How far runs of the same code lie apart."""
    print(f"{'instructions of one run':44} {'least':>10} {'most':>10} {'spread':>8}")
    for name in runs[0]:
        seen = [run[name] for run in runs]
        print(f"{name:44} {min(seen):10,.0f} {max(seen):10,.0f} {max(seen) / min(seen) - 1:8.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
