"""How the interpreter is set for a loop that nobody may keep waiting: figures in `decisions/0015-no-long-stall.md`."""

from __future__ import annotations

import gc
import sys

__all__ = ["keep_loop_steady"]

_SWITCH_SECONDS = 0.0005
"""How long a thread that computes may keep the loop from the interpreter's lock, each time it wants it back."""
_YOUNGEST = 2_500
"""Objects that are made before the youngest are collected: more than many requests have under way between them."""
_OLDEST = 2
_MOST_WALKED = 50_000
"""Objects that a full collection leaves to the next one: it walks over all of them, while the loop waits."""


def keep_loop_steady() -> None:
    """Shorten the turns of threads, and take what the start has made from the garbage collector: it stays for good.

    Nothing of it is collected: a third of a megabyte of garbage is not worth the walk. What comes later and is many,
    such as counters of teams, is taken from it, too, as it grows. What is taken goes when nothing refers to it any
    more; a cycle that is broken only then is lost, of some that were under way at that moment. For the whole process,
    once it serves.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_YOUNGEST)
    gc.freeze()
    gc.enable()
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)


def _set_aside(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == _OLDEST and len(gc.get_objects(_OLDEST)) > _MOST_WALKED:
        gc.freeze()
