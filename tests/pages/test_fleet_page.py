"""The operator's page of several workers: one page for all of them, and a team's sign-in good for each."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import eventually, run_tollgate
from tests.support.workers import ask, until_all_serve

WORKERS = 2
ASKED = 12
SECONDS = 60
"""A page is good for ten times as long as it took to make."""
ROW = re.compile(r"<tr>(.*?)</tr>")
CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>")


def rows(gateway, part):
    """The cells of one part's tables, as text."""
    with requests.Session() as session:
        session.trust_env = False
        page = session.get(gateway.operations_url, timeout=20).text
    held = re.search(rf'<div id="{part}" data-live>(.*?)</section>', page)[1]
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in CELL.findall(row)] for row in ROW.findall(held)]


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def fleet(simulator, redis, tmp_path_factory):
    settings = f'redis_url = "{redis.url}"\n[server]\nworkers = {WORKERS}\n'
    place = tmp_path_factory.mktemp("fleet")
    with run_tollgate(place, simulator.base_url, simulator.key, settings=settings) as gateway:
        until_all_serve(gateway, WORKERS)
        yield gateway


def test_it_speaks_for_all_of_them(fleet):
    team = fleet.add_team("many", requests_per_minute=1, request_capacity=4)
    ended = Counter(ask(fleet, team).status_code for _ in range(ASKED))
    assert ended.keys() == {200, 429}

    def told():
        found = [row for row in rows(fleet, "refusals") if row[1] == "many"]
        return [int(row[7]) for row in found] == [ended[429]]

    eventually(told, seconds=SECONDS, what=f"all {ended[429]} refusals of {WORKERS} workers in one row")

    def limited():
        found = [row[2] for row in rows(fleet, "limits") if row[0] == "many" and len(row) == 5]
        return len(found) == 1 and re.fullmatch(r"[1-4] of 4, 1 a minute( none left)?", found[0])

    eventually(limited, seconds=SECONDS, what="its limit, as the Redis has it that they share")

    def called():
        (upstream,) = rows(fleet, "upstreams")[1:]
        return upstream[0] == "openai" and int(upstream[2]) >= ended[200]

    eventually(called, seconds=SECONDS, what=f"all {ended[200]} calls upstream")


def test_a_limit_is_not_known_while_redis_is_away(fleet, redis):
    fleet.add_team("quiet", requests_per_minute=7)

    def shown():
        return next((row[2] for row in rows(fleet, "limits") if row[0] == "quiet"), "")

    eventually(lambda: shown() == "0 of 7", seconds=SECONDS, what="that it is known")
    with redis.frozen():
        eventually(lambda: shown() == "7 a minute, use not known", seconds=SECONDS, what="that it is not known")
    eventually(lambda: shown() == "0 of 7", seconds=SECONDS, what="that it is known again")


def test_every_worker_takes_a_sign_in(fleet):
    team = fleet.add_team("signed")
    served = Counter()
    with requests.Session() as session:
        session.trust_env = False
        form = {"key": team.key}
        answer = session.post(f"{fleet.root}/tollgate/sign-in", data=form, allow_redirects=False, timeout=20)
        assert answer.status_code == 303
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
    for _ in range(8):
        # A connection of its own each time: the kernel deals them out.
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Cookie": cookie, "Connection": "close"}
            page = session.get(f"{fleet.root}/tollgate", headers=headers, timeout=20)
        served[page.status_code] += "<h1>signed</h1>" in page.text
    assert served == {200: 8}
