"""`tollgate doctor` as tests ask it, and an upstream that answers a GET as it is told."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from click.testing import CliRunner

from proxy.cli import main

__all__ = ["Doctor", "Told", "answering"]


@dataclass
class Told:
    """What it said: checks by name, the exit status, and everything it printed."""

    checks: Mapping[str, tuple[str, str, str]]
    """Name -> verdict, what was said, what to do."""
    status: int
    printed: str

    def __getitem__(self, check: str) -> tuple[str, str, str]:
        return self.checks[check]

    def verdict(self, check: str) -> str:
        return self.checks[check][0]


class Doctor:
    """Asks in one place, with variables and options of each question's own."""

    def __init__(self, place: Path) -> None:
        self.data_dir = place / "data"
        self.config = place / "tollgate.toml"

    def __call__(self, settings: str = "", *options: str, **variables: str) -> Told:
        self.config.write_text(settings)
        self.config.chmod(0o600)
        arguments = ["doctor", "--config", str(self.config), "--data-dir", str(self.data_dir), "--json", *options]
        if "--port" not in options:
            arguments += ["--port", "0", "--admin-port", "0"]
        no_proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"))
        result = CliRunner().invoke(main, arguments, env={"OPENAI_API_KEY": None, **no_proxies, **variables})
        assert isinstance(result.exception, SystemExit | None), result.exception
        said = json.loads(result.stdout)
        assert said["ok"] is (result.exit_code == 0)
        checks: dict[str, tuple[str, str, str]] = {}
        for each in said["checks"]:
            # Of several with a name the worst is of interest.
            if checks.get(each["check"], ("ok",))[0] == "ok":
                checks[each["check"]] = (each["verdict"], each["said"], each["remedy"])
            assert each["verdict"] == "ok" or each["remedy"], each
        return Told(checks, result.exit_code, result.output)


@contextmanager
def answering(
    status: int,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    date: Callable[[], str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """The URL of a server that answers every GET alike; `date`: what it says the time is."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp) if date is None else date()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
