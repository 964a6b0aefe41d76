"""Who may use a data directory."""

import subprocess
import sys

import pytest

from proxy.app.database import alone_in
from proxy.core.registry import DataUnusable

HOLD = """
import pathlib, sys
from proxy.app.database import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_server_at_a_time_holds_limits_in_process(tmp_path):
    with alone_in(tmp_path / "data"):
        with pytest.raises(DataUnusable, match="TOLLGATE_REDIS_URL"), alone_in(tmp_path / "data"):
            pass
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "data"):
        pass


def test_a_server_that_was_killed_holds_nothing(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(DataUnusable), alone_in(tmp_path):
            pass
        process.kill()
        process.wait(timeout=60)
    with alone_in(tmp_path):
        pass
