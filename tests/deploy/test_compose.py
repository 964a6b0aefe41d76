"""The compose file: valid, hardened, and what it runs is what the command line takes."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from proxy import __version__
from proxy.app.open_files import connections_that_fit
from proxy.app.supervisor import _KILL_AFTER_DRAIN_SECONDS
from proxy.cli import main
from proxy.cli.serve import serve
from proxy.settings import load

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
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
        name: str(value)
        for name, value in SERVICES["tollgate"]["environment"].items()
        if not value.startswith("${") and not name.endswith("_FILE")
    }
    overrides = {name.replace("__", "."): value for name, value in flags.items() if name not in {"config", "demo"}}
    settings = load(None, {**environment, "OPENAI_API_KEY": "sk-some-key"}, overrides)
    settings.check_servable()
    published = {port.split(":")[-1] for port in SERVICES["tollgate"]["ports"]}
    assert published == {str(settings.server.port), str(settings.server.admin_port)}
    assert settings.server.host == settings.server.admin_host == "0.0.0.0"
    assert SERVICES["tollgate"]["volumes"] == [f"tollgate-data:{settings.data_dir}"]


def test_variables_of_the_service_are_settings(tmp_path):
    (tmp_path / "key").write_text("sk-some-key")
    values = {
        "TOLLGATE_ADMIN_HOST": "0.0.0.0",
        "TOLLGATE_DATABASE_URL": SERVICES["tollgate"]["environment"]["TOLLGATE_DATABASE_URL"],
        "TOLLGATE_UPSTREAM": "http://h/v1",
        "TOLLGATE_UPSTREAM_API_KEY_FILE": str(tmp_path / "key"),
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
    assert grace_seconds > server.drain_seconds + server.ready_grace_seconds + _KILL_AFTER_DRAIN_SECONDS


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_services_are_hardened(name):
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?[\w.-]*", service["image"]), "pinned to a version"
    user, group = map(int, service["user"].split(":"))
    assert user > 0
    assert group > 0 or name == "grafana", "its image keeps its files for that group"
    assert service["read_only"] is True
    assert service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert all("noexec,nosuid,nodev" in mount for mount in service["tmpfs"])
    assert "privileged" not in service
    assert not any("docker.sock" in mount for mount in service.get("volumes", []))
    assert all(mount.endswith(":ro") for mount in service.get("volumes", []) if mount.startswith("."))
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert set(service["healthcheck"]) >= {"interval", "timeout", "start_period", "retries"}
    assert int(service["stop_grace_period"].removesuffix("s")) >= 15
    assert service["restart"] == "unless-stopped"


def test_secrets_are_files_and_in_no_variable():
    for name, service in SERVICES.items():
        named = {value for value in service.get("environment", {}).values() if "/run/secrets/" in str(value)}
        mounted = set(service.get("secrets", []))
        assert {re.search(r"/run/secrets/(\w+)", value)[1] for value in named} == mounted, name
        for variable, value in service.get("environment", {}).items():
            assert not re.search(r"KEY|PASSWORD|SECRET|TOKEN", variable) or variable.endswith("_FILE"), variable
            assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), variable
    assert {secret for service in SERVICES.values() for secret in service.get("secrets", [])} == set(COMPOSE["secrets"])


def test_secrets_are_made_for_their_services_once(tmp_path):
    place = tmp_path / "secrets"
    command = [ROOT / "deploy/make-secrets", place]
    without = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    refused = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "OPENAI_API_KEY" in refused.stderr
    subprocess.run(command, env=without | {"OPENAI_API_KEY": "sk-some-key"}, check=True)
    made = {path.name: path.read_text() for path in place.iterdir()}
    assert set(made) == {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()}
    assert made["openai_api_key"] == "sk-some-key"
    assert made["pgpass"] == f"postgres:5432:tollgate:tollgate:{made['postgres_password']}\n"
    assert len({made["postgres_password"], made["grafana_password"]}) == 2
    assert len(made["grafana_password"]) == 48
    assert place.stat().st_mode & 0o777 == 0o711
    for path in place.iterdir():
        assert path.stat().st_mode & 0o777 == 0o400
        (service,) = [each for each in SERVICES.values() if path.name in each.get("secrets", [])]
        if os.geteuid() == 0:
            assert path.stat().st_uid == int(service["user"].split(":")[0])
    subprocess.run(command, env=without, check=True)
    assert {path.name: path.read_text() for path in place.iterdir()} == made


def test_stores_reach_nobody_and_only_tollgate_reaches_them():
    internal = {name for name, network in COMPOSE["networks"].items() if network and network.get("internal")}
    assert internal == {"stores"}
    assert {name for name, service in SERVICES.items() if "stores" in service["networks"]} == {
        "tollgate", "redis", "redis-cache", "postgres",
    }  # fmt: skip
    for name in ("redis", "redis-cache", "postgres"):
        assert SERVICES[name]["networks"] == ["stores"]
        assert "ports" not in SERVICES[name]


def test_a_service_waits_for_what_it_needs_to_be_healthy():
    for service in SERVICES.values():
        for name, need in service.get("depends_on", {}).items():
            assert need == {"condition": "service_healthy"}
            assert SERVICES[name]["healthcheck"]["test"]
    assert set(SERVICES["tollgate"]["depends_on"]) == {"redis", "redis-cache", "postgres"}


def test_limits_of_the_machine_fit_the_settings():
    assert connections_that_fit(SERVICES["tollgate"]["ulimits"]["nofile"]) >= load(None, {}).server.max_connections
    for name in ("redis", "redis-cache"):
        command = SERVICES[name]["command"]
        most = int(command[command.index("--maxmemory") + 1].removesuffix("mb"))
        assert int(SERVICES[name]["deploy"]["resources"]["limits"]["memory"].removesuffix("m")) >= 1.5 * most


def test_what_is_mounted_is_there_and_is_what_its_reader_looks_for():
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).is_dir() if source.startswith(".") else source in COMPOSE["volumes"]
    prometheus = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
    assert "targets: [tollgate:8081]" in prometheus
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["tollgate"]["networks"])
    provider = (ROOT / "deploy/grafana/provisioning/dashboards/tollgate.yml").read_text()
    assert "path: /etc/grafana/dashboards" in provider
    source = (ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text()
    assert "url: http://prometheus:9090" in source


def test_the_image_is_built_of_what_leaves_the_checkout_and_lacks_nothing(tmp_path):
    """The wheel that the image installs, built from no more than the engine is sent, has every file of the package."""
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    build = DOCKERFILE.split("\nFROM ")[1]
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", build, re.MULTILINE) for word in line.split()]
    assert set(copied) == set(sent)
    for name in copied:
        target = tmp_path / "context" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, tmp_path / "context"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "proxy").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= inside


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
