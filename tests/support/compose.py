"""docker-compose.yml, read and started without containers: the same commands and environment, at other places.

What is mapped: the addresses that services call each other by, the addresses and ports they listen on, the paths of
volumes and secrets. Everything else is as the file says.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from ruamel.yaml import YAML

from tests.support.ports import free_port
from tests.support.postgres_server import bin_dir, unprivileged
from tests.support.redis_server import server_binary
from tests.support.tollgate_process import COMMAND, ROOT, Child, clean_environment, eventually
from tests.support.tools import program

__all__ = ["COMPOSE", "NATIVE", "Native", "natively"]

COMPOSE: Mapping[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
PORTS = {"redis": 6379, "redis-cache": 6379, "postgres": 5432, "prometheus": 9090, "tollgate": 8080}
NATIVE = tuple(PORTS)
"""Services that can be had without containers: all but Grafana."""
_OPERATIONS = 8081
_HEALTHY_SECONDS = 60.0


def seconds_of(duration: str) -> float:
    """A duration of the compose file; whole seconds are all it uses."""
    assert duration.endswith("s"), duration
    return float(duration.removesuffix("s"))


class Native:
    """The services of the file, started in the order of what they depend on."""

    def __init__(self, place: Path, variables: Mapping[str, str]) -> None:
        self.place = place
        self._variables = variables
        self.ports = {(name, port): free_port() for name, port in PORTS.items()}
        self.ports["tollgate", _OPERATIONS] = free_port()
        self.running: dict[str, Child] = {}

    # What is mapped

    def address(self, service: str, port: int | None = None) -> str:
        return f"127.0.0.1:{self.ports[service, port or PORTS[service]]}"

    def volume(self, service: str, target: str) -> Path:
        """The directory of what a service has at a path."""
        for mounted in COMPOSE["services"][service].get("volumes", []):
            source, path = mounted.split(":")[:2]
            if target == path or target.startswith(f"{path}/"):
                return self.place / source / target.removeprefix(path).lstrip("/")
        raise AssertionError(f"{service} has nothing at {target}")

    def text(self, service: str, text: str) -> str:
        """A word of a command, or the value of a variable, as it is here."""
        text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: self._variables.get(found[1]) or found[2], text)
        for (name, port), here in self.ports.items():
            text = re.sub(rf"(?<![\w-]){name}:{port}\b", f"127.0.0.1:{here}", text)
            if name == service:
                text = re.sub(rf"\b(127\.0\.0\.1|0\.0\.0\.0):{port}\b", f"127.0.0.1:{here}", text)
                text = str(here) if text == str(port) else text
        text = text.replace("/run/secrets/", f"{self.place}/secrets/").replace("0.0.0.0", "127.0.0.1")
        for mounted in COMPOSE["services"][service].get("volumes", []):
            path = mounted.split(":")[1]
            text = re.sub(rf"(?<![\w/]){path}(?=/|$)", str(self.volume(service, path)), text)
        return text

    def command(self, service: str) -> list[str]:
        return [self.text(service, word) for word in COMPOSE["services"][service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        given = COMPOSE["services"][service].get("environment", {})
        return clean_environment(**{name: self.text(service, str(value)) for name, value in given.items()})

    # Starting and ending

    def up(self) -> None:
        """Start everything, each when what it depends on is healthy."""
        self._prepare_secrets()
        left = list(NATIVE)
        while left:
            ready = [name for name in left if not set(self._needs(name)) & set(left)]
            assert ready, left
            for name in ready:
                self.start(name)
            for name in ready:
                eventually(lambda name=name: self.is_healthy(name), seconds=_HEALTHY_SECONDS, what=f"healthy {name}")
                left.remove(name)

    def _needs(self, service: str) -> Sequence[str]:
        needs = COMPOSE["services"][service].get("depends_on", {})
        assert all(need["condition"] == "service_healthy" for need in needs.values())
        return list(needs)

    def _prepare_secrets(self) -> None:
        """As people are told to make them, with the address of Postgres."""
        done = subprocess.run(
            [ROOT / "deploy/make-secrets", self.place / "secrets"],
            env=clean_environment(**self._variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        passwords = self.place / "secrets/pgpass"
        text = passwords.read_text()
        host, port = self.address("postgres").split(":")
        passwords.chmod(0o600)
        passwords.write_text(text.replace("postgres:5432:", f"{host}:{port}:"))

    def start(self, service: str) -> None:
        getattr(self, f"_prepare_{service.replace('-', '_')}", lambda: None)()
        logs = Path(tempfile.mkdtemp(prefix=f"{service}-log-", dir=self.place))
        self.running[service] = Child(self._program(service), logs, self.environment(service))

    def _program(self, service: str) -> list[str]:
        """The command as the image's entry point runs it."""
        command = self.command(service)
        if service == "tollgate":
            return [*COMMAND, *command]
        if service == "prometheus":
            return [program("prometheus", "prometheus"), *command]
        if service == "postgres":
            data = self.environment(service)["PGDATA"]
            here = ["-D", data, "-p", str(self.ports[service, 5432]), "-k", "", "-c", "dynamic_shared_memory_type=mmap"]
            return [*self._as_postgres(), str(bin_dir() / command[0]), *command[1:], *here]
        directory = self.place / service
        directory.mkdir(exist_ok=True)
        assert command[0] == "redis-server"
        return [
            server_binary(),
            *command[1:],
            "--port",
            str(self.ports[service, 6379]),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(directory),
        ]

    def _prepare_prometheus(self) -> None:
        """The configuration as it is mounted, with the address of what it scrapes, and more often."""
        here = self.volume("prometheus", "/etc/prometheus")
        shutil.copytree(ROOT / here.relative_to(self.place), here)
        file = here / "prometheus.yml"
        file.write_text(self.text("prometheus", file.read_text()).replace("interval: 15s", "interval: 1s"))
        (self.place / "prometheus-data").mkdir()

    def _prepare_postgres(self) -> None:
        """What the image's entry point does where there is no data."""
        given = self.environment("postgres")
        data = Path(given["PGDATA"])
        if data.exists():
            return
        data.parent.mkdir(parents=True)
        rights = unprivileged()
        if rights:
            os.chown(data.parent, rights["user"], rights["group"])
        password = data.parent / "password"
        shutil.copy(given["POSTGRES_PASSWORD_FILE"], password)
        if rights:
            os.chown(password, rights["user"], rights["group"])
        options = ["-D", str(data), "-U", given["POSTGRES_USER"], "--pwfile", str(password), "--no-sync"]
        done = subprocess.run(
            [bin_dir() / "initdb", *options, *given["POSTGRES_INITDB_ARGS"].split()],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=data.parent,
            **rights,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        password.unlink()

    def _as_postgres(self) -> list[str]:
        """Postgres refuses to run as root."""
        rights = unprivileged()
        if not rights:
            return []
        become = "os.setgroups([]); os.setgid({group}); os.setuid({user})".format(**rights)
        return [sys.executable, "-c", f"import os, sys; {become}; os.execv(sys.argv[1], sys.argv[1:])"]

    def is_healthy(self, service: str) -> bool:
        """What the health check of the file says, run as it stands there."""
        child = self.running[service]
        assert child.exit_status is None, child.stderr
        kind, *words = COMPOSE["services"][service]["healthcheck"]["test"]
        words = [self.text(service, word) for word in words]
        command = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        if command[0] == "python":
            command[0] = sys.executable
        # Servers that come in a wheel have their clients beside them.
        beside = [os.environ["PATH"], str(Path(server_binary()).parent), str(bin_dir())]
        environment = clean_environment(PATH=os.pathsep.join(beside))
        program(command[0], "wget", path=environment["PATH"])
        # As long as an engine would wait, and as much longer as this machine may have to do.
        within = 10 * seconds_of(COMPOSE["services"][service]["healthcheck"]["timeout"])
        try:
            done = subprocess.run(command, capture_output=True, timeout=within, check=False, env=environment)
        except subprocess.TimeoutExpired:
            return False
        if done.returncode == 0 and service == "postgres":
            self._make_database()
        return done.returncode == 0

    def _make_database(self) -> None:
        """The other thing that the image's entry point does."""
        given = self.environment("postgres")
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            name = given["POSTGRES_DB"]
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # a name of the file's own

    def dsn(self, database: str) -> str:
        given = self.environment("postgres")
        password = Path(given["POSTGRES_PASSWORD_FILE"]).read_text()
        return f"postgresql://{given['POSTGRES_USER']}:{password}@{self.address('postgres')}/{database}"

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec tollgate tollgate ...` would do."""
        return subprocess.run(
            [*COMMAND, *words, "--data-dir", str(self.volume("tollgate", "/var/lib/tollgate"))],
            env=self.environment("tollgate"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def stop(self, service: str) -> int:
        """End one as the engine would, with the signal and in the time of the file; its exit status."""
        said = COMPOSE["services"][service]
        child = self.running.pop(service)
        child.signal(signal.Signals[said.get("stop_signal", "SIGTERM")])
        eventually(lambda: child.exit_status is not None, seconds=seconds_of(said["stop_grace_period"]),
                   what=f"the end of {service}")  # fmt: skip
        return child.exit_status or 0

    def down(self) -> None:
        """End what runs, the last to start first."""
        for service in reversed(NATIVE):
            if service in self.running:
                self.running.pop(service).end()


@contextmanager
def natively(place: Path, **variables: str) -> Iterator[Native]:
    """The services, up and healthy. `variables` are those that the file takes from the environment."""
    services = Native(place, variables)
    try:
        services.up()
        yield services
    finally:
        services.down()
