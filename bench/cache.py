"""What it costs to seal an answer for Redis and to open it again, by the size of its body.

`python bench/cache.py`: microseconds of CPU time for an entry, medians of interleaved rounds. All of it is in process;
what a round trip costs is in `redis_calls.py`. Bodies are made of words, as answers are: random bytes do not compress.
"""

from __future__ import annotations

import json
import random
import string
import time
from collections.abc import Callable

from figures import Figure, arguments, deliver

from proxy.adapters.cache_keys import MasterKeys
from proxy.adapters.envelope import Envelope
from proxy.ports import CachedAnswer

SIZES = (512, 2_867, 65_536)
NOW_MS = 1_800_000_000_000
PLACE, SECRET = "c:growth:{7QhVxXKUJ0QTAwe3Nlc2VtZW50cyBhcmUgc3RyYW5nZQ}", bytes(range(32))


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
    figures = []
    for size in SIZES:
        what = f"answer of {size / 1024:.1f} KB"
        figures.append(Figure.of(f"{what}: sealing", sealing[size], "us"))
        figures.append(Figure.of(f"{what}: opening", opening[size], "us"))
        figures.append(Figure(f"{what}: sealed", len(sealed[size]) / 1024, "KB"))
    return figures


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="rounds to take the median of; 9, or 3 where it is to be quick")
    parser.add_argument("--count", type=int, default=3_000, help="entries of the smallest size in a round")
    chosen = parser.parse_args()
    deliver(measure(chosen.rounds or (3 if chosen.quick else 9), chosen.count), chosen.json)


if __name__ == "__main__":
    main()
