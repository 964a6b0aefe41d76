"""Programs of the system that tests need."""

from __future__ import annotations

import os
import shutil

import pytest

__all__ = ["program"]


def program(name: str, package: str, *, path: str | None = None) -> str:
    """Where a program is. Where it is not, the test is skipped and says what to install; on CI it fails."""
    found = shutil.which(name, path=path)
    if found is None:
        said = f"{name} is not on PATH; install it (Debian: apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found
