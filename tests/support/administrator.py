"""An administrator in a process of their own: issues, renames, rotates and revokes, as told on the command line.

`python -m tests.support.administrator DATABASE SECRETS NAME ROUNDS [SHARED-KID]` says `ready`, waits for the end of its
standard input, and prints what it has done as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.registry import TeamExists

__all__ = ["work"]


def work(registry: SqlRegistry, name: str, rounds: int, shared: str) -> dict[str, int]:
    """Change what is ours and what everybody changes; returns how many changes of each kind there were."""
    done = {"team.add": 0, "team.set": 0, "team.limit": 0, "key.issue": 0, "key.set": 0, "key.rotate": 0}
    done["key.revoke"] = 0
    for each in range(rounds):
        try:
            registry.add_team(f"team-{each}", "free")
            done["team.add"] += 1
        except TeamExists:
            # The other one was first: exactly one of us made it.
            pass
        kid = registry.issue_key("growth", f"{name}-{each}").record.kid
        registry.set_key(kid, label=f"{name}-{each}-renamed")
        registry.set_key(shared, label=f"{name}-{each}", max_wait_ms=each + 1)
        registry.set_team("growth", requests_per_minute=each + 1, weight=each + 1)
        registry.set_model_limit("growth", f"{name}-{each}", 1)
        registry.rotate_key(shared)
        for counted in ("key.issue", "team.set", "team.limit", "key.rotate"):
            done[counted] += 1
        done["key.set"] += 2
        if each % 2:
            registry.revoke_key(kid)
            registry.revoke_key(kid)
            done["key.revoke"] += 1
    return done


def main(database: str, secrets: str, name: str, rounds: str, shared: str) -> None:
    """Wait for the word, then work."""
    engine = open_engine(database if "://" in database else Path(database))
    registry = SqlRegistry(engine, SystemClock(), load_or_create_pepper(Path(secrets)), actor=f"cli:{name}")
    registry.list_teams()
    print("ready", flush=True)
    sys.stdin.read()
    print(json.dumps(work(registry, name, int(rounds), shared)))
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
