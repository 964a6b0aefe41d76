"""What it costs to seal an answer for Redis and to open it again, by the size of its body.

`python bench/cache.py`: microseconds of CPU time for an entry, medians of interleaved rounds. All of it is in process;
what a round trip costs is in `redis_calls.py`. Bodies are made of words, as answers are: random bytes do not compress.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from proxy.adapters.cache_keys import MasterKeys
from proxy.adapters.envelope import Envelope
from proxy.ports import CachedAnswer

SIZES = (512, 2_867, 65_536)
NOW_MS = 1_800_000_000_000
PLACE, SECRET = "c:growth:{7QhVxXKUJ0QTAwe3Nlc2VtZW50cyBhcmUgc3RyYW5nZQ}", bytes(range(32))


@dataclass(frozen=True)
class Figure:
    """What one size costs."""

    body_bytes: int
    sealed_bytes: int
    seal_microseconds: float
    open_microseconds: float


def words(size: int) -> bytes:
    """Text that compresses about as answers do."""
    chance = random.Random(size)  # noqa: S311 - the same text in every run
    known = ["".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(2_000)]
    weights = [1 / (number + 1) for number in range(len(known))]
    text = " ".join(chance.choices(known, weights, k=size // 3))
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()[:size]


def timed(call: Callable[[], object], count: int) -> float:
    """CPU microseconds of one call."""
    began = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - began) / count * 1e6


def measure(rounds: int, count: int) -> list[Figure]:
    """Every size in every round."""
    envelope = Envelope(MasterKeys.of(bytes(range(32))), max_payload_bytes=2**20)
    answers = {
        size: CachedAnswer(
            200, (("Content-Type", "application/json"),), words(size), "gpt-4o", NOW_MS, 60_000, 9, 99, 7
        )
        for size in SIZES
    }
    sealed = {size: envelope.seal(PLACE, SECRET, answer) or b"" for size, answer in answers.items()}
    sealing: dict[int, list[float]] = {size: [] for size in SIZES}
    opening: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size, answer in answers.items():
            times = max(50, count * SIZES[0] // size)
            sealing[size].append(timed(lambda answer=answer: envelope.seal(PLACE, SECRET, answer), times))
            opening[size].append(timed(lambda kept=sealed[size]: envelope.open(PLACE, SECRET, kept, NOW_MS), times))
    return [
        Figure(size, len(sealed[size]), statistics.median(sealing[size]), statistics.median(opening[size]))
        for size in SIZES
    ]


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="rounds to take the median of")
    arguments.add_argument("--count", type=int, default=3_000, help="entries of the smallest size in a round")
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    figures = measure(chosen.rounds, chosen.count)
    print(f"{'body':>8} {'sealed':>8} {'seal us':>9} {'open us':>9}")
    for figure in figures:
        print(
            f"{figure.body_bytes:8,} {figure.sealed_bytes:8,} {figure.seal_microseconds:9.1f} "
            f"{figure.open_microseconds:9.1f}"
        )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
