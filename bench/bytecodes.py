"""Where a request spends its bytecodes: exact, the same on any machine whatever else it does, by module and function.

`python bench/bytecodes.py` asks over HTTP as `steps.py` does, on asyncio's own loop, and counts what the interpreter
executes on the loop's thread. What C code does under a bytecode weighs nothing here: see `count.py` for that.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from steps import Step, everything

REQUESTS = 64
TOLD = 30
_ROOTS = sorted((str(Path(each).resolve()) for each in [*sys.path, Path(__file__).parents[1]] if each), key=len)[::-1]


async def executed(step: Step) -> tuple[Counter[CodeType], Counter[CodeType]]:
    """Bytecodes and frames, by function, of so many requests that are warm."""
    bytecodes: Counter[CodeType] = Counter()
    frames: Counter[CodeType] = Counter()

    def inside(frame: FrameType, event: str, _: Any) -> Any:
        bytecodes[frame.f_code] += event == "opcode"
        return inside

    def entered(frame: FrameType, _: str, __: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        frames[frame.f_code] += 1
        return inside

    for _ in range(2):
        await step.run(*await step.prepare())  # type: ignore[misc]  # of HTTP, all of them wait
    (requests,) = await step.prepare()
    sys.settrace(entered)
    await step.run(requests[:REQUESTS])  # type: ignore[misc]  # as above
    sys.settrace(None)
    return bytecodes, frames


def place_of(code: CodeType) -> str:
    """The file of a function, below where it is imported from."""
    root = next((each for each in _ROOTS if code.co_filename.startswith(f"{each}/")), "")
    return code.co_filename[len(root) + 1 :] if root else code.co_filename


def show(name: str, bytecodes: Counter[CodeType], frames: Counter[CodeType]) -> None:
    """The modules and the functions with most of them, for one request."""
    modules: Counter[str] = Counter()
    for code, number in bytecodes.items():
        modules[place_of(code)] += number
    total, entered = bytecodes.total() / REQUESTS, frames.total() / REQUESTS
    print(f"\n{name}: {total:,.0f} bytecodes in {entered:.0f} frames\n")
    for place, number in modules.most_common(TOLD):
        print(f"{number / REQUESTS:8.0f}  {place}")
    print()
    for code, number in bytecodes.most_common(TOLD):
        where = f"{place_of(code)}:{code.co_firstlineno} {code.co_name}"
        print(f"{number / REQUESTS:8.0f}  {where}, {frames[code] / REQUESTS:.1f} times")


async def look(names: list[str]) -> None:
    """Count and print."""
    async with everything() as steps:
        for step in steps:
            if step.name.removeprefix("HTTP: ") in names:
                show(step.name, *await executed(step))


def main() -> None:
    """Count what is named on the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", default=["pass-through", "hit", "429"], help="of the rows of HTTP")
    logging.disable(logging.WARNING)
    asyncio.run(look(arguments.parse_args().names))


if __name__ == "__main__":
    main()
