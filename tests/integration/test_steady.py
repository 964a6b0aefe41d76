"""What a serving process does that its loop need not wait: for the garbage collector, and for threads that compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.tollgate_process import run_tollgate
from tests.support.workers import until_all_serve

AT_THE_END = """
import atexit, gc, json, os, pathlib, sys

def tell():
    told = {"command": sys.orig_argv, "frozen": gc.get_freeze_count(), "switch_seconds": sys.getswitchinterval()}
    pathlib.Path(%r, f"{os.getpid()}.json").write_text(json.dumps(told))

atexit.register(tell)
"""
MADE_BY_IMPORTS_ALONE = 20_000
NOBODY = 'redis_url = "redis://127.0.0.1:1/0"\n'


@pytest.mark.parametrize(("workers", "settings"), [(1, ""), (2, NOBODY)])
def test_a_worker_leaves_its_start_to_no_collection_and_gives_threads_short_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, settings: str
) -> None:
    """Each process says so itself as it ends."""
    said, place = tmp_path / "said", tmp_path / "place"
    said.mkdir()
    place.mkdir()
    (place / "sitecustomize.py").write_text(AT_THE_END % str(said))
    monkeypatch.setenv("PYTHONPATH", str(place))
    options = ("--workers", str(workers))
    with run_tollgate(
        tmp_path / "gateway", "http://127.0.0.1:1/v1", "sk-1", settings=settings, options=options
    ) as gateway:
        if workers > 1:
            until_all_serve(gateway, workers)
    serving = [json.loads(path.read_text()) for path in said.iterdir()]
    assert len(serving) == (1 if workers == 1 else 1 + workers)
    for each in serving:
        assert each["frozen"] > MADE_BY_IMPORTS_ALONE, each
        assert each["switch_seconds"] == pytest.approx(0.0005), each
