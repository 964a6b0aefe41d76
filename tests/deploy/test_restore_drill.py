"""The drill of deploy/README.md: back up while requests come, restore elsewhere, prove the books, use the old keys."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import psycopg
import requests

from tests.support.postgres_server import bin_dir
from tests.support.tollgate_process import COMMAND, ROOT, Team, clean_environment, eventually, run_tollgate

UPSTREAM_KEY = "sk-upstream-of-deployments"
SETTINGS = "[ledger]\nsegment_bytes = 65_536\n"
"""Small segments: they come and go while the backup is made."""
COLUMNS = "event_id, request_id, team, model, outcome, cost_pico_usd, input_tokens, output_tokens"


class Callers(threading.Thread):
    """Ask again and again until told to stop; remember what was answered."""

    def __init__(self, gateway, key: str, number: int) -> None:
        super().__init__()
        self._url, self._key, self._number = f"{gateway.base_url}/chat/completions", key, number
        self.answered: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            for turn in range(5_000):
                if self.ended.is_set():
                    return
                body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"{self._number} {turn}"}]}
                try:
                    answer = session.post(
                        self._url, json=body, headers={"Authorization": f"Bearer {self._key}"}, timeout=30
                    )
                except requests.ConnectionError:
                    return
                assert answer.status_code == 200, answer.text
                self.answered.append(answer.headers["x-request-id"])


def made_team(gateway, name: str, *options: str) -> Team:
    """As people make them, in whatever database the server has."""
    gateway.cli("teams", "add", name, "--tier", "unlimited", *options)
    issued = json.loads(gateway.cli("keys", "issue", "--team", name, "--json", *options))
    return Team(name, issued["key"], issued["id"])


def back_up(data_dir: Path, target: Path) -> None:
    with target.open("wb") as tar:
        done = subprocess.run(
            [sys.executable, ROOT / "deploy/backup.py", data_dir],
            stdout=tar,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr


def restore(tar: Path, data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    subprocess.run(["tar", "--extract", "--file", tar, "--directory", data_dir], check=True, timeout=60)


def sqlite_rows(data_dir: Path) -> dict[str, tuple]:
    with closing(sqlite3.connect(data_dir / "tollgate.sqlite3")) as database:
        found = database.execute(f"SELECT {COLUMNS} FROM usage_events").fetchall()
    rows = {row[0]: row for row in found}
    assert len(rows) == len(found), "an event is there once"
    return rows


def postgres_rows(url: str) -> dict[str, tuple]:
    with psycopg.connect(url) as connection:
        found = connection.execute(f"SELECT {COLUMNS} FROM usage_events").fetchall()  # type: ignore[arg-type]  # ours
    rows = {row[0]: row for row in found}
    assert len(rows) == len(found), "an event is there once"
    return rows


def drill(tmp_path, simulator, options, dump, rows_before, rows_after, restored_options):
    """Back up in the middle of it all, and prove what came back. `dump` is what follows the tar file."""
    with run_tollgate(tmp_path / "here", simulator.base_url, UPSTREAM_KEY, settings=SETTINGS, options=options) as here:
        team, revoked = (made_team(here, name, *options) for name in ("growth", "gone"))
        here.cli("keys", "revoke", revoked.kid, *options)
        callers = [Callers(here, team.key, number) for number in range(4)]
        for caller in callers:
            caller.start()
        try:
            eventually(lambda: all(len(caller.answered) > 40 for caller in callers), seconds=60, what="some requests")
            before = {request for caller in callers for request in list(caller.answered)}
            back_up(here.data_dir, tmp_path / "tollgate.tar")
            dump()
            so_far = sum(len(caller.answered) for caller in callers)
            eventually(
                lambda: sum(len(caller.answered) for caller in callers) > so_far + 20, seconds=30, what="more requests"
            )
        finally:
            for caller in callers:
                caller.ended.set()
            for caller in callers:
                caller.join(60)
        here.signal(signal.SIGTERM)
        assert here.wait() == 0
        true = rows_before(here.data_dir)
    place = tmp_path / "there"
    place.mkdir()
    restore(tmp_path / "tollgate.tar", place / "data")
    with (
        run_tollgate(place, simulator.base_url, UPSTREAM_KEY, settings=SETTINGS, options=restored_options) as there,
        requests.Session() as session,
    ):
        session.trust_env = False
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "I am back"}]}
        for key, status in ((team, 200), (revoked, 401)):
            answer = session.post(f"{there.base_url}/chat/completions", json=body, headers=key.headers, timeout=30)
            assert answer.status_code == status

        def whole():
            found = rows_after(there.data_dir)
            return found if before <= {row[1] for row in found.values()} else None

        eventually(whole, seconds=30, what="every request that was answered before the backup")
        # With a server that has taken over what was in the spool.
        there.cli("ledger", "verify", *restored_options)
        there.signal(signal.SIGTERM)
        assert there.wait() == 0
        there.cli("ledger", "verify", *restored_options)
        came_back = rows_after(there.data_dir)
    assert len(came_back) < len(true) + 1, "what came after the backup is not in it"
    whole_ones = {event: row for event, row in came_back.items() if row[4] != "interrupted"}
    new = [event for event in whole_ones if event not in true]
    assert len(new) == 1, "the one request that was made there"
    assert all(true[event] == row for event, row in whole_ones.items() if event not in new)
    # What was under way at that instant is there as such, and is one of those that were.
    interrupted = came_back.keys() - whole_ones.keys()
    assert interrupted <= true.keys()
    assert len(interrupted) <= len(callers)


def test_a_ledger_in_sqlite_comes_back(tmp_path, simulator):
    drill(tmp_path, simulator, (), lambda: None, sqlite_rows, sqlite_rows, ())


def test_a_ledger_in_postgres_comes_back(tmp_path, simulator, postgres):
    with postgres.database() as name, postgres.database() as other:
        url, other_url = postgres.url(name), postgres.url(other)
        target = tmp_path / "tollgate.dump"

        def dump() -> None:
            subprocess.run([bin_dir() / "pg_dump", "--format=custom", f"--file={target}", url], check=True, timeout=60)
            subprocess.run(
                [bin_dir() / "pg_restore", "--no-owner", "--exit-on-error", f"--dbname={other_url}", target],
                check=True, timeout=60,
            )  # fmt: skip

        drill(
            tmp_path, simulator, ("--database-url", url), dump,
            lambda _: postgres_rows(url), lambda _: postgres_rows(other_url), ("--database-url", other_url),
        )  # fmt: skip


def test_events_that_only_the_spool_had_come_back(tmp_path, simulator):
    """Nobody can write to the database while the backup is made."""
    with run_tollgate(tmp_path / "here", simulator.base_url, UPSTREAM_KEY) as here:
        team = here.add_team("growth")

        def ask(text: str) -> None:
            body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
            with requests.Session() as session:
                session.trust_env = False
                url = f"{here.base_url}/chat/completions"
                assert session.post(url, json=body, headers=team.headers, timeout=30).status_code == 200

        ask("first")
        here.events("growth", 1)
        with closing(sqlite3.connect(here.data_dir / "tollgate.sqlite3", isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            for text in ("second", "third", "fourth"):
                ask(text)
            back_up(here.data_dir, tmp_path / "tollgate.tar")
            holder.execute("ROLLBACK")
    (tmp_path / "there").mkdir()
    restore(tmp_path / "tollgate.tar", tmp_path / "there/data")
    assert len(sqlite_rows(tmp_path / "there/data")) == 1
    with run_tollgate(tmp_path / "there", simulator.base_url, UPSTREAM_KEY) as there:
        there.events("growth", 4)
        there.cli("ledger", "verify")


def test_a_backup_without_its_peppers_is_seen_before_it_is_needed(tmp_path, simulator):
    with run_tollgate(tmp_path / "here", simulator.base_url, UPSTREAM_KEY) as here:
        here.add_team("growth")
        back_up(here.data_dir, tmp_path / "tollgate.tar")
    restore(tmp_path / "tollgate.tar", tmp_path / "there")
    assert (tmp_path / "tollgate.tar").stat().st_mode & 0o777 == 0o600

    def doctor():
        arguments = ("doctor", "--data-dir", tmp_path / "there", "--upstream", simulator.base_url, "--port", "0",
                     "--admin-port", "0")  # fmt: skip
        return subprocess.run([*COMMAND, *arguments], env=clean_environment(OPENAI_API_KEY=UPSTREAM_KEY),
                              capture_output=True, text=True, check=False, timeout=60)  # fmt: skip

    def restored() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()}

    as_it_came = restored()
    assert doctor().returncode == 0
    assert restored() == as_it_came, "looking changes nothing"
    (tmp_path / "there/peppers.json").unlink()
    done = doctor()
    assert done.returncode == 1
    assert "peppers.json is missing, and the database goes by it: 1 keys" in done.stdout


def test_a_backup_has_what_is_needed_and_nothing_that_is_not(tmp_path, simulator):
    with run_tollgate(tmp_path / "here", simulator.base_url, UPSTREAM_KEY) as here:
        here.add_team("growth")
        (here.data_dir / "prices.json").write_text('{"models": {}}')
        back_up(here.data_dir, tmp_path / "tollgate.tar")
        assert not list(here.data_dir.glob(".backup-*"))
    with tarfile.open(tmp_path / "tollgate.tar") as tar:
        entries = {entry.name: entry for entry in tar}
    names = list(entries)
    last_of_spool = max(at for at, name in enumerate(names) if name.startswith("spool/"))
    assert last_of_spool < names.index("tollgate.sqlite3"), "what is taken over meanwhile is in both"
    top = {name.split("/")[0] for name in entries}
    assert top == {"spool", "tollgate.sqlite3", "peppers.json", "admin_token", "prices.json"}
    for name in ("peppers.json", "admin_token", "tollgate.sqlite3"):
        assert entries[name].mode & 0o077 == 0


def test_a_damaged_database_is_no_backup(tmp_path):
    (tmp_path / "tollgate.sqlite3").write_bytes(b"SQLite format 3\0" + os.urandom(8_000))
    with (tmp_path / "out.tar").open("wb") as out:
        done = subprocess.run(
            [sys.executable, ROOT / "deploy/backup.py", tmp_path], stdout=out, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode != 0
    assert (
        subprocess.run([sys.executable, ROOT / "deploy/backup.py"], stderr=subprocess.PIPE, check=False).returncode == 2
    )
