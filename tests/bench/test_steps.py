"""The steps of the line, put together as a worker puts them together: they are measured, and leave nothing behind."""

import asyncio
import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
WHOLES = ("HTTP: pass-through", "HTTP: hit in other bytes", "HTTP: hit", "HTTP: 429")


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import steps

    return steps


def test_every_step_is_measured(tmp_path, steps):
    told = tmp_path / "steps.json"
    command = [sys.executable, BENCH / "steps.py", "--rounds", "1", "--json", told]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    figures = {each["what"].removeprefix("step, "): each["value"] for each in json.loads(told.read_text())}
    assert steps.PARTS | set(WHOLES) < set(figures)
    assert all(value > 0 for value in figures.values())
    assert all(name in shown for name in (*figures, steps.REST))


@pytest.mark.parametrize("name", WHOLES)
def test_a_request_leaves_nothing_to_the_collector(name, steps):
    """What refers to itself is held, with the body that was sent, until all there is has been walked over."""

    async def left() -> Counter[str]:
        async with steps.everything() as all_:
            step = next(each for each in all_ if each.name == name)
            await step.run(*await step.prepare())
            (requests,) = await step.prepare()
            gc.collect()
            gc.disable()
            await step.run(requests[:64])
            await asyncio.sleep(0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            return Counter(type(each).__name__ for each in gc.garbage)

    try:
        found = asyncio.run(left())
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not {kind: number for kind, number in found.items() if number >= 64}
