"""The compose file: valid, hardened, and what it runs is what the command line takes."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from proxy import __version__
from proxy.cli import main
from proxy.cli.serve import serve
from proxy.settings import load

ROOT = Path(__file__).parents[2]
SERVICES = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())["services"]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.compose-spec", "docker-compose.yml"),
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
    ],
)
def test_files_follow_their_published_schema(schema, file):
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_command_of_the_service_is_one_the_command_line_takes():
    command, *arguments = SERVICES["tollgate"]["command"]
    assert command == "serve"
    assert main.get_command(None, command) is serve
    flags = serve.make_context(command, arguments).params
    environment = {
        name: str(value) for name, value in SERVICES["tollgate"]["environment"].items() if not value.startswith("${")
    }
    overrides = {name.replace("__", "."): value for name, value in flags.items() if name not in {"config", "demo"}}
    settings = load(None, {**environment, "OPENAI_API_KEY": "sk-some-key"}, overrides)
    settings.check_servable()
    published = {port.split(":")[-1] for port in SERVICES["tollgate"]["ports"]}
    assert published == {str(settings.server.port), str(settings.server.admin_port)}
    assert settings.server.host == settings.server.admin_host == "0.0.0.0"
    assert SERVICES["tollgate"]["volumes"] == [f"tollgate-data:{settings.data_dir}"]


def test_variables_of_the_service_are_settings():
    values = {
        "OPENAI_API_KEY": "sk-some-key",
        "TOLLGATE_ADMIN_HOST": "0.0.0.0",
        "TOLLGATE_UPSTREAM": "http://h/v1",
        "TOLLGATE_CACHE_REDIS_URL": "redis://redis-cache:6379/0",
        "TOLLGATE_REDIS_URL": "redis://redis:6379/0",
        "TOLLGATE_WORKERS": "2",
    }
    assert set(SERVICES["tollgate"]["environment"]) == set(values)
    load(None, values).check_servable()


def test_variables_of_the_image_are_settings():
    variables = dict(re.findall(r"(TOLLGATE_\w+)=(\S+)", DOCKERFILE))
    assert variables["TOLLGATE_DATA_DIR"] == "/var/lib/tollgate"
    load(None, variables).check_servable(demo=True)


def test_a_stop_waits_longer_than_the_drain():
    grace_seconds = int(SERVICES["tollgate"]["stop_grace_period"].removesuffix("s"))
    server = load(None, {}).server
    assert grace_seconds > server.drain_seconds + server.ready_grace_seconds


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_are_hardened(name):
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+[\w.-]*", service["image"]), "pinned to a version"
    assert not service["user"].startswith(("0", "root"))
    assert service["read_only"] is True
    assert service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_versions_agree():
    assert SERVICES["tollgate"]["image"] == f"tollgate:{__version__}"


def test_redis_starts_on_demand_for_as_long_as_it_is_not_served():
    redis = load(None, {"TOLLGATE_REDIS_URL": "redis://redis"})
    served = not redis.servability(demo=True)
    assert ("profiles" not in SERVICES["redis"]) is served


def test_redis_neither_evicts_nor_forgets():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


def test_the_redis_of_answers_evicts_and_is_another():
    command = " ".join(SERVICES["redis-cache"]["command"])
    assert re.search(r"--maxmemory \d+mb --maxmemory-policy allkeys-", command)
    environment = SERVICES["tollgate"]["environment"]
    assert environment["TOLLGATE_CACHE_REDIS_URL"] != environment["TOLLGATE_REDIS_URL"]
    assert "redis-cache" in SERVICES["tollgate"]["depends_on"]


def test_the_image_has_what_a_cache_in_redis_needs():
    assert "--requirement deploy/requirements-server.lock" in DOCKERFILE


def test_the_image_runs_as_nobody_in_particular_and_installs_by_hash():
    stages = DOCKERFILE.split("\nFROM ")
    assert len(stages) == 3
    assert "--require-hashes" in stages[1]
    assert re.search(r"^USER 10001:10001$", stages[2], re.MULTILINE)
    assert SERVICES["tollgate"]["user"] == "10001:10001"


class _Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
@pytest.mark.parametrize("where", ["compose", "image"])
def test_health_checks_tell_a_healthy_server_from_another(where, status, healthy):
    if where == "compose":
        code = SERVICES["tollgate"]["healthcheck"]["test"][-1]
    else:
        code = re.search(r'CMD \["python", "-c", "(.+)"\]', DOCKERFILE)[1]
    handler = type("_Handler", (_Health,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            here = code.replace(":8081/", f":{server.server_port}/")
            assert here != code
            checked = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False)
        finally:
            server.shutdown()
            thread.join()
    assert (checked.returncode == 0) is healthy


def test_run_time_dependencies_are_the_same_in_all_locks():
    pinned = [
        set(re.findall(r"^(\S+==\S+)", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("deploy/requirements.lock", "deploy/requirements-server.lock", "tests/requirements.lock")
    ]
    assert pinned[0] <= pinned[1] <= pinned[2]
    assert len(pinned[0]) < 25


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for file, wanted in (
        ("deploy/requirements.lock", project["project"]["dependencies"]),
        ("deploy/requirements-server.lock", project["project"]["optional-dependencies"]["server"]),
        ("tests/requirements.lock", project["dependency-groups"]["dev"]),
    ):
        locked = set(re.findall(r"^([\w.-]+)==", (ROOT / file).read_text(), re.MULTILINE))
        names = {re.match(r"[\w.-]+", each)[0].lower().replace(".", "-") for each in wanted}
        assert names <= locked
