"""An upstream that gives one answer whatever it is asked: for answers that the simulator would never give."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["CannedUpstream", "canned_upstream"]


@dataclass
class CannedUpstream:
    """Where it is, and the bodies it was asked with."""

    base_url: str = ""
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def canned_upstream(status: int, content_type: str, body: bytes) -> Iterator[CannedUpstream]:
    canned = CannedUpstream()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            canned.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            canned.base_url = f"http://127.0.0.1:{server.server_port}/v1"
            yield canned
        finally:
            server.shutdown()
            thread.join()
