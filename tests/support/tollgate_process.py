"""Real processes for tests: `tollgate serve` in front of `tollgate simulate-openai`, on free ports, always ended.

Output goes to files, so that nothing blocks on a full pipe and everything said can be looked through afterwards.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import requests
from click.testing import CliRunner

from proxy.app import open_registry
from proxy.app.database import SQLITE_FILE
from proxy.cli import main
from proxy.core.registry import TeamFields
from proxy.settings import load
from tests.support.schema import put_database

__all__ = [
    "COMMAND",
    "ROOT",
    "Simulator",
    "Team",
    "Tollgate",
    "clean_environment",
    "eventually",
    "run_simulator",
    "run_tollgate",
]

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "proxy")
START_SECONDS = 60.0
STOP_SECONDS = 40.0
POLL_SECONDS = 0.02

_Value = TypeVar("_Value")


def eventually(look: Callable[[], _Value], *, seconds: float = 40.0, what: str = "the condition") -> _Value:
    """Return the first true value of `look`, asked for again and again within a bound."""
    deadline = time.monotonic() + seconds
    while True:
        # Before it is asked: this process may be what stood still.
        is_last = time.monotonic() > deadline
        value = look()
        if value:
            return value
        if is_last:
            raise AssertionError(f"{what} did not come within {seconds:g} s; last seen: {value!r}")
        time.sleep(POLL_SECONDS)


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what would speak to Tollgate or an SDK, and with `more`."""
    prefixes = ("TOLLGATE_", "OPENAI_", "MAKE", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return kept | more


class Child:
    """A child in a session of its own, with its output in two files."""

    def __init__(self, arguments: Sequence[str], log_dir: Path, environment: Mapping[str, str]) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = log_dir / "stdout", log_dir / "stderr"
        with self._stdout.open("ab") as out, self._stderr.open("ab") as err:
            self._child = subprocess.Popen(
                arguments,
                cwd=log_dir,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        return _text_of(self._stdout)

    @property
    def stderr(self) -> str:
        return _text_of(self._stderr)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_status(self) -> int | None:
        return self._child.poll()

    def said(self, pattern: str, of: Callable[[], str], *, seconds: float = START_SECONDS) -> re.Match[str]:
        """The match of what the child says sooner or later; fails at once when it ends instead."""

        def look() -> re.Match[str] | None:
            ended = self.exit_status is not None
            found = re.search(pattern, of(), re.MULTILINE)
            assert found or not ended, f"ended with {self.exit_status}: {self.stderr}"
            return found

        return eventually(look, seconds=seconds, what=pattern)

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let it take connections, and do nothing about them, within the block."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the child and all that it started."""
        os.killpg(self._child.pid, number)

    def wait(self) -> int:
        return self._child.wait(STOP_SECONDS)

    def end(self) -> None:
        """Terminate, and kill whatever of the group is left after a while."""
        if self._child.poll() is not None:
            return
        self.signal_group(signal.SIGTERM)
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.signal_group(signal.SIGKILL)
            self._child.wait()


class Simulator(Child):
    """A simulated OpenAI upstream that takes one key."""

    def __init__(self, log_dir: Path, key: str, *options: str) -> None:
        self.key = key
        arguments = (*COMMAND, "simulate-openai", "--api-key-env", "SIMULATOR_KEY", *options)
        super().__init__(arguments, log_dir, clean_environment(SIMULATOR_KEY=key))
        try:
            self.base_url = self.said(r"http://\S+/v1", lambda: self.stdout)[0]
        except BaseException:
            self.end()
            raise
        self.root = self.base_url.removesuffix("/v1")

    def stats(self) -> dict[str, Any]:
        """What it has seen and sent since the last reset."""
        return _plain_get(f"{self.root}/simulator/stats").json()

    def reset(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.post(f"{self.root}/simulator/reset", timeout=30).raise_for_status()

    def idle_stats(self) -> dict[str, Any]:
        """The same, once nothing is in flight."""

        def look() -> dict[str, Any] | None:
            stats = self.stats()
            return None if stats["in_flight"] else stats

        return eventually(look, what="an idle upstream")

    def last_body(self) -> bytes:
        return base64.b64decode(self.stats()["last_body_base64"])

    def last_headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.stats()["seen_headers_last"]}

    @property
    def key_digest(self) -> str:
        """How its key appears in the statistics."""
        return f"sha256:{hashlib.sha256(f'Bearer {self.key}'.encode()).hexdigest()[:16]}"


@contextmanager
def run_simulator(log_dir: Path, key: str, *options: str) -> Iterator[Simulator]:
    simulator = Simulator(log_dir, key, *options)
    try:
        yield simulator
    finally:
        simulator.end()


@dataclass(frozen=True)
class Team:
    """A team with one key."""

    name: str
    key: str = field(repr=False)
    kid: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


class Tollgate(Child):
    """A running `tollgate serve`; ready once made.

    A first start finds the schema made, unless it is to have an `empty` place: making it costs as much as a third of a
    start.
    """

    def __init__(
        self,
        work_dir: Path,
        upstream: str,
        upstream_key: str,
        *,
        settings: str = "",
        options: Sequence[str] = (),
        empty: bool = False,
    ) -> None:
        work_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir = work_dir / "data"
        if not empty and not self.data_dir.exists() and "database_url" not in settings:
            self.data_dir.mkdir(mode=0o700)
            put_database(self.data_dir / SQLITE_FILE)
        config = work_dir / "tollgate.toml"
        config.write_text(settings)
        self._place = ("--config", str(config), "--data-dir", str(self.data_dir))
        super().__init__(
            (*COMMAND, "serve", *self._place, "--upstream", upstream, *_FREE_PORTS, *options),
            # A second start in the same place has a log of its own.
            Path(tempfile.mkdtemp(prefix="run-", dir=work_dir)),
            clean_environment(OPENAI_API_KEY=upstream_key),
        )
        try:
            self.base_url = self.said(r"serving (https?://\S+/v1)", lambda: self.stderr)[1]
            self.operations_url = self.said(r"operations on (http://\S+)\n", lambda: self.stderr)[1]
            eventually(lambda: self.ready_status() == 200, seconds=START_SECONDS, what="readiness")
        except BaseException:
            self.end()
            raise
        self._settings = load(config, {}, {"data_dir": str(self.data_dir)})

    @property
    def root(self) -> str:
        return self.base_url.removesuffix("/v1")

    def ready_status(self) -> int | None:
        """Status of /readyz; None when nobody answers."""
        try:
            return _plain_get(f"{self.operations_url}/readyz").status_code
        except requests.ConnectionError:
            return None

    def metrics(self) -> str:
        return _plain_get(f"{self.operations_url}/metrics").text

    def cli(self, *arguments: str, place: bool = True) -> str:
        """What a `tollgate` command beside this server prints on stdout. Fails when it does.

        `place`: name this server's settings and data to it, which not every command takes.
        """
        unset = dict.fromkeys(os.environ.keys() - clean_environment().keys())
        # In this process: most of what a command takes by itself are its imports.
        done = CliRunner().invoke(
            main,
            [*arguments, *(self._place if place else ())],
            prog_name="tollgate",
            env=unset,
            catch_exceptions=False,
        )
        assert done.exit_code == 0, done.stderr
        return done.stdout

    def add_team(self, name: str, tier: str = "unlimited", *, expires_at_ms: int | None = None, **fields: Any) -> Team:
        """Make a team and a key for it, in the database of the running server."""
        team_fields: TeamFields = fields
        with open_registry(self._settings) as registry:
            registry.add_team(name, tier, **team_fields)
            issued = registry.issue_key(name, expires_at_ms=expires_at_ms)
        return Team(name, issued.key, issued.record.kid)

    def log_lines(self) -> list[dict[str, Any]]:
        """The request log so far; every complete line must be one JSON object."""
        return [json.loads(line) for line in self.stdout.splitlines(keepends=True) if line.endswith("\n")]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The one line of a request."""
        found = eventually(
            lambda: [line for line in self.log_lines() if line["request_id"] == request_id], what="the log line"
        )
        assert len(found) == 1
        return found[0]

    def events(self, team: str, count: int) -> list[dict[str, Any]]:
        """The team's events in the ledger, once there are at least `count` of them."""
        return eventually(lambda: self._at_least(team, count), what=f"{count} events of {team}")

    def _at_least(self, team: str, count: int) -> list[dict[str, Any]] | None:
        with closing(
            sqlite3.connect(f"file:{self.data_dir}/tollgate.sqlite3?mode=ro", uri=True, timeout=30)
        ) as database:
            database.row_factory = sqlite3.Row
            # By the millisecond in which they began; of two of one millisecond the first to be written was first.
            order = "substr(event_id, 1, 13), rowid"
            rows = database.execute(f"SELECT * FROM usage_events WHERE team = ? ORDER BY {order}", (team,)).fetchall()
        return [dict(row) for row in rows] if len(rows) >= count else None


@contextmanager
def run_tollgate(work_dir: Path, upstream: str, upstream_key: str, **more: Any) -> Iterator[Tollgate]:
    running = Tollgate(work_dir, upstream, upstream_key, **more)
    try:
        yield running
    finally:
        running.end()


_FREE_PORTS = ("--port", "0", "--admin-port", "0")


def _text_of(file: Path) -> str:
    """What is in a file that is being written; a character of which a part is there is still to come."""
    return codecs.getincrementaldecoder("utf-8")().decode(file.read_bytes()).replace("\r\n", "\n")


def _plain_get(url: str) -> requests.Response:
    """A GET that no proxy of the environment takes part in."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, timeout=30)
