"""A watched loop says how late it was, and whose doing that was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SCRIPT = """
import asyncio, gc, os, pathlib, signal, time, uvloop

def keep_waiting():
    if KIND == "work":
        until = time.thread_time() + 0.06
        while time.thread_time() < until:
            pass
    else:
        time.sleep(0.06)

async def told(seen):
    os.kill(os.getpid(), signal.SIGUSR1)
    while not seen.exists():
        await asyncio.sleep(0.001)

async def main():
    seen = pathlib.Path(FILE)
    await asyncio.sleep(0.01)
    await told(seen)
    seen.unlink()
    keep_waiting()
    gc.collect()
    await asyncio.sleep(0.01)
    await told(seen)

uvloop.new_event_loop().run_until_complete(main())
"""


@pytest.mark.parametrize(("kind", "own"), [("work", True), ("sleep", False)])
def test_what_kept_a_loop_waiting_is_seen_with_whose_work_it_was(kind, own, tmp_path):
    script, file = tmp_path / "script.py", tmp_path / "seen.json"
    script.write_text(f"KIND, FILE = {kind!r}, {str(file)!r}\n{SCRIPT}")
    subprocess.run([sys.executable, BENCH / "watched.py", file, script], check=True, timeout=60)
    seen = json.loads(file.read_text())
    assert seen["longest_ms"] >= 55
    assert seen["late"]["50"] >= 1
    assert (seen["longest_own_ms"] >= 55) is own
    assert seen["collections"][2] == 1
    assert seen["longest_collection_ms"][2] > 0
