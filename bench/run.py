"""`make bench`: every measurement in turn, each a script of its own that prints its table and writes JSON.

A section takes `--json FILE` and `--quick`, prints its own table, and writes the list of figures that `figures.py`
describes: `{"what", "value", "unit", "target": number | null, "better": "more" | "less", "spread"}`.

Absolute figures move with the machine; compare only figures of one run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECTIONS = (
    ("Starting", "startup.py"),
    ("Deciding: one limit, 64 callers", "limiter.py"),
    ("Accounting: the spool, the database, a report over a million events", "ledger.py"),
    ("Sealing an answer for Redis, and opening it", "cache.py"),
    ("Answering from the cache, beside a bare server", "hits.py"),
)


def main() -> int:
    """Run the sections; the exit status is that of the first that failed."""
    here = Path(__file__).parent
    for title, script in SECTIONS:
        print(f"\n{title}\n", flush=True)
        status = subprocess.run([sys.executable, str(here / script)], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
