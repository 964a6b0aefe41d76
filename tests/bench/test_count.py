"""The guard against slow change: what it says of counts, and that it counts."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import count
from tests.support.tools import program

ROOT = Path(__file__).parents[2]
HERE = {"python": "CPython 3.11.7", "architecture": "x86_64"}
RECORDED = {"environment": HERE, "instructions": {"digest": 55_000, "estimate": 16_000}}


@pytest.mark.parametrize(
    ("digest", "status", "said"),
    [
        (55_000, 0, "+0.0%"),
        (57_200, 0, "+4.0%"),
        (52_800, 0, "-4.0%"),
        (58_300, 1, "+6.0% MORE"),
        (51_700, 1, "-6.0% LESS"),
    ],
)
def test_a_step_is_held_to_five_percent(digest, status, said, capsys):
    assert count.judge(RECORDED, {"digest": digest, "estimate": 16_000}, HERE) == status
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if line.startswith("digest")).endswith(f"  {said}")
    assert ("not within 5%: digest\n" in shown) == (status == 1)


def test_a_step_that_is_gone_fails(capsys):
    assert count.judge(RECORDED, {"digest": 55_000}, HERE) == 1
    assert "not within 5%: estimate\n" in capsys.readouterr().out


def test_a_step_that_nobody_recorded_fails(capsys):
    assert count.judge(RECORDED, {"digest": 55_000, "estimate": 16_000, "log line": 60_000}, HERE) == 1
    assert "not within 5%: log line\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "other", [HERE | {"architecture": "aarch64"}, {"python": "CPython 3.11.7"}, HERE | {"msgspec": "1"}]
)
def test_counts_of_other_parts_are_shown_and_not_compared(other, capsys):
    assert count.judge(RECORDED, {"digest": 1_000_000, "estimate": 16_000}, other) == count.NOT_COMPARABLE
    shown = capsys.readouterr().out
    assert "1,000,000" in shown
    assert "not comparable" in shown
    assert "%" not in shown


def test_what_differs_is_named():
    assert count.differences(HERE, HERE) == []
    assert count.differences(HERE, HERE | {"architecture": "aarch64"}) == ["architecture: x86_64, here aarch64"]


@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**9)), max_size=5),
    st.integers(1, 100),
)
def test_what_is_not_the_steps_own_cancels(parts, times):
    """Before each pair of parts, between its two, and around every run there is something that is no step's."""
    names = [f"step {number}" for number in range(len(parts))]
    totals = []
    for beside, own, around in parts:
        totals += [beside, around + own * times, beside, around + 2 * own * times]
    shared = count.shared_out(names, [*totals, 12_345], times)
    assert shared == {name: own for name, (_, own, _) in zip(names, parts, strict=True)}


def test_parts_that_are_missing_are_seen():
    with pytest.raises(ValueError, match="4 parts of 1 steps"):
        count.shared_out(["digest"], [1, 2, 3, 4], 10)


def test_without_valgrind_it_says_what_to_install(tmp_path):
    command = [sys.executable, ROOT / "bench" / "count.py"]
    asked = subprocess.run(
        command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=60
    )
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "apt-get install valgrind" in asked.stderr


def test_steps_are_counted():
    program("valgrind", "valgrind")
    counted = count.count(times=4, only=("price: look up", "digest"))
    assert list(counted) == ["digest", "price: look up"]
    # A walk over a row or two, and a digest of some 300 bytes; the interpreter's start is some hundred million.
    assert 200 < counted["price: look up"] < 20_000
    assert 10_000 < counted["digest"] < 500_000
