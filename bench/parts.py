"""Run steps so that callgrind tells them apart; `count.py` starts what calls this, and reads what is printed.

Each step is run so many times and then twice as often; a call of `getpgrp`, which nothing else asks for, says where a
part ends and the next begins.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping

__all__ = ["Step", "run"]

WARM = 64
"""Runs before the first that is counted: by then the interpreter has specialised its instructions."""

Step = Callable[[], object]


def repeat(step: Step, times: int) -> None:
    """Run it so often, as one part."""
    os.getpgrp()
    for _ in range(times):
        step()
    os.getpgrp()


def run(steps: Mapping[str, Step]) -> None:
    """Run the steps as often as the command line says, and print which they were."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--times", type=int, required=True)
    times: int = arguments.parse_args().times
    # What the step before left would be collected in the middle of the next.
    gc.disable()
    for step in steps.values():
        for _ in range(WARM):
            step()
        repeat(step, times)
        repeat(step, 2 * times)
    json.dump(list(steps), sys.stdout)
