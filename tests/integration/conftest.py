"""One gateway and one upstream for all tests of a worker; a fresh team for each test."""

from __future__ import annotations

import fcntl
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from openai import OpenAI

from tests.support.tollgate_process import Simulator, Team, Tollgate, clean_environment, run_simulator, run_tollgate
from tests.support.tools import program

UPSTREAM_KEY = "sk-upstream-7Hq2vYwZ0kTn"
SETTINGS = """
[upstream]
first_backoff_ms = 5
max_backoff_ms = 500
"""
NODE_DIR = Path(__file__).parent / "node"

Call = Callable[..., requests.Response]


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with run_simulator(tmp_path_factory.mktemp("simulator"), UPSTREAM_KEY) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollgate]:
    place = tmp_path_factory.mktemp("gateway")
    with run_tollgate(place, simulator.base_url, simulator.key, settings=SETTINGS) as running:
        yield running


@pytest.fixture
def upstream(simulator: Simulator) -> Iterator[Simulator]:
    """The upstream with its counts at zero, left idle for the next test."""
    simulator.idle_stats()
    simulator.reset()
    yield simulator
    simulator.idle_stats()


_numbers = itertools.count()


@pytest.fixture
def new_team(gateway: Tollgate) -> Callable[..., Team]:
    def new(*arguments: object, **fields: object) -> Team:
        return gateway.add_team(f"team-{next(_numbers)}", *arguments, **fields)

    return new


@pytest.fixture
def team(new_team: Callable[..., Team]) -> Team:
    """A team without limits."""
    return new_team()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def call(gateway: Tollgate, session: requests.Session, team: Team) -> Call:
    """POST a chat completion: a dict or raw bytes, for `team` unless told otherwise."""

    def post(
        body: object,
        headers: dict[str, str] | None = None,
        *,
        by: Team = team,
        query: str = "",
        read_seconds: float = 30,
        **more: object,
    ):
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        url = f"{gateway.base_url}/chat/completions{query}"
        sent = {"Content-Type": "application/json", **by.headers, **(headers or {})}
        return session.post(url, headers=sent, timeout=(5, read_seconds), **content, **more)

    return post


@pytest.fixture
def post(gateway: Tollgate, session: requests.Session, team: Team) -> Call:
    """POST to any path below the version: a dict or raw bytes, for `team` unless told otherwise."""

    def ask(path: str, body: object, headers: dict[str, str] | None = None, *, by: Team = team, **more: object):
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        sent = {"Content-Type": "application/json", **by.headers, **(headers or {})}
        return session.post(f"{gateway.base_url}/{path}", headers=sent, timeout=30, **content, **more)

    return ask


@pytest.fixture
def straight(simulator: Simulator) -> Iterator[OpenAI]:
    """The official SDK, without a gateway between it and upstream."""
    with OpenAI(base_url=simulator.base_url, api_key=simulator.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def node() -> Path:
    """The directory in which Node finds the official SDK; installed from the lock on first use."""
    program("node", "nodejs")
    program("npm", "npm")
    with (NODE_DIR / "package.json").open() as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)  # several workers, one directory
        installed, wanted = NODE_DIR / "node_modules/.package-lock.json", NODE_DIR / "package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            done = subprocess.run(
                ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=NODE_DIR,
                env=clean_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=110,
            )
            assert done.returncode == 0, done.stderr
    return NODE_DIR
