"""The official Python SDK in versions beside the one the tests themselves use, each in a directory of its own.

A directory is filled once, from a lock with hashes, and found again by the next run: it is named for what is in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.tollgate_process import ROOT, clean_environment

__all__ = ["SDKS", "Sdk", "sdk_of"]

SDKS = ROOT / "tests" / "sdks"
INSTALL_SECONDS = 150


@dataclass(frozen=True)
class Sdk:
    """How to start Python with one version of the SDK, and nothing else from beyond the standard library."""

    python: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def sdk_of(generation: str) -> Sdk:
    """`newest`, or the generation that a lock in `tests/sdks` is for; installed on first use."""
    if generation == "newest":
        return Sdk((sys.executable,))
    lock = SDKS / f"openai-{generation}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    place = SDKS / ".installed" / f"{lock.stem}-{sys.implementation.cache_tag}-{digest}"
    place.parent.mkdir(exist_ok=True)
    with place.with_suffix(".lock").open("w") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)  # several workers, one directory
        if not place.exists():
            _install(lock, place)
    return Sdk((sys.executable, "-S"), {"PYTHONPATH": str(place)})


def _install(lock: Path, place: Path) -> None:
    partial = place.with_suffix(".partial")
    command = (
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--upgrade"),
        *("--require-hashes", "--only-binary", ":all:", "--target", str(partial), "--requirement", str(lock)),
    )
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
    )
    if done.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(done.stderr)
        pytest.skip(f"needs a package registry once: python -m pip install --target {place} --requirement {lock}")
    partial.rename(place)
