"""A real Prometheus for tests, and promtool: on free ports, in directories of their own, always ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.ports import free_port
from tests.support.tollgate_process import ROOT, Child, clean_environment, eventually

__all__ = ["ALERT_RULES", "PROMETHEUS_DIR", "RECORDING_RULES", "Prometheus", "promtool", "run_prometheus", "tool"]

PROMETHEUS_DIR = ROOT / "deploy/prometheus"
ALERT_RULES = PROMETHEUS_DIR / "rules/tollgate.alerts.yml"
RECORDING_RULES = PROMETHEUS_DIR / "rules/tollgate.rules.yml"


def tool(name: str) -> str:
    """Where `prometheus` or `promtool` is. Where they are not, the test is skipped, except on CI."""
    found = shutil.which(name)
    if found is None:
        said = f"{name} is not on PATH; install Prometheus (Debian: apt-get install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """What it says, and whether that was good."""
    command = [tool("promtool"), *map(str, arguments)]
    # It lives for seconds: collecting its garbage as often as a server's is a fifth of its work.
    environment = os.environ | {"GOGC": "400"}
    return subprocess.run(
        command, env=environment, input=text, capture_output=True, text=True, check=False, timeout=100
    )


class Prometheus(Child):
    """A running server; ready once made. `config` is the text of its settings, beside which `work_dir` has the rest."""

    def __init__(self, work_dir: Path, config: str) -> None:
        binary = tool("prometheus")
        work_dir.mkdir(parents=True, exist_ok=True)
        file = work_dir / "prometheus.yml"
        file.write_text(config)
        self.root = f"http://127.0.0.1:{free_port()}"
        options = (
            f"--config.file={file}",
            f"--storage.tsdb.path={work_dir / 'data'}",
            f"--web.listen-address={self.root.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
            "--query.lookback-delta=1m",
        )
        super().__init__((binary, *options), work_dir / "log", clean_environment())
        try:
            eventually(self._is_ready, seconds=60, what="a ready Prometheus")
        except BaseException:
            self.end()
            raise

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; fails with what it says was wrong."""
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(f"{self.root}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression, now."""
        return list(self.ask("query", query=expression)["result"])

    def firing(self) -> dict[str, list[Mapping[str, str]]]:
        """The alerts that fire, with the labels they fire with."""
        found: dict[str, list[Mapping[str, str]]] = {}
        for alert in self.ask("alerts")["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def _is_ready(self) -> bool:
        assert self.exit_status is None, self.stderr
        try:
            with requests.Session() as session:
                session.trust_env = False
                return session.get(f"{self.root}/-/ready", timeout=30).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False


@contextmanager
def run_prometheus(work_dir: Path, config: Mapping[str, Any]) -> Iterator[Prometheus]:
    """Run one with settings as JSON, which is YAML too."""
    running = Prometheus(work_dir, json.dumps(config))
    try:
        yield running
    finally:
        running.end()
