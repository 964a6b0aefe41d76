"""Workers keep what they refused where their supervisor finds it."""

from __future__ import annotations

import asyncio

from proxy.app.pages import read_refusals, share_refusals, write_refusals
from proxy.core.event import Outcome
from proxy.core.record import RequestRecord
from proxy.core.refusals import RecentRefusals


def record(team, at_ms):
    model = '"><\u2028é'
    refusal = (429, Outcome.LIMITED, 1, 1)
    return RequestRecord(f"req_{at_ms}", at_ms, "POST", "chat", *refusal, team=team, model=model, error_code="x")


def refused(team, at_ms):
    kept = RecentRefusals()
    kept.note(record(team, at_ms))
    return kept


def test_what_workers_write_is_read_as_one(tmp_path):
    assert read_refusals(tmp_path) == ()
    one, other = refused("a", 1).latest(), refused("b", 2).latest()
    assert write_refusals(tmp_path, 0, one)
    assert write_refusals(tmp_path, 11, other)
    assert read_refusals(tmp_path) == (*other, *one)
    assert write_refusals(tmp_path, 11, one)
    ((found),) = read_refusals(tmp_path)
    assert (found.count, found.team) == (2, "a")
    assert not list(tmp_path.glob("*.draft"))


def test_a_disk_that_takes_nothing_is_no_harm(tmp_path):
    assert not write_refusals(tmp_path / "gone", 0, refused("a", 1).latest())
    assert read_refusals(tmp_path / "gone") == ()


async def test_a_worker_tells_as_soon_as_it_begins(tmp_path):
    kept = refused("a", 1)
    sharing = asyncio.create_task(share_refusals(kept, tmp_path, 3))
    try:
        async with asyncio.timeout(60):
            while read_refusals(tmp_path) != kept.latest():  # noqa: ASYNC110 - a file tells of nothing
                await asyncio.sleep(0.01)
    finally:
        sharing.cancel()


async def test_what_a_worker_refused_outlives_it(tmp_path):
    assert write_refusals(tmp_path, 3, refused("a", 1).latest())
    assert write_refusals(tmp_path, 33, refused("other", 3).latest())
    kept = RecentRefusals()
    sharing = asyncio.create_task(share_refusals(kept, tmp_path, 3))
    try:
        kept.note(record("a", 2))
        async with asyncio.timeout(60):
            while len(found := read_refusals(tmp_path, 3)) != 1 or found[0].count != 2:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    finally:
        sharing.cancel()
    assert (found[0].team, found[0].at_ms) == ("a", 2)
    assert [each.team for each in read_refusals(tmp_path)] == ["other", "a"]
