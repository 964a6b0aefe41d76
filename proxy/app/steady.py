"""How the interpreter is set for a loop that nobody may keep waiting: figures in `decisions/0015-no-long-stall.md`."""

from __future__ import annotations

import gc
import sys

__all__ = ["keep_loop_steady"]

_SWITCH_SECONDS = 0.0005
"""How long a thread that computes may keep the loop from the interpreter's lock, each time it wants it back."""


def keep_loop_steady() -> None:
    """Shorten the turns of threads, and take what the start has made from the garbage collector: it stays for good.

    For the whole process, once it serves.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
