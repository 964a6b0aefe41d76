"""The manifests of Kubernetes: valid, hardened, of one mind with the settings; and what they start is started."""

from __future__ import annotations

import copy
import re
import signal
from pathlib import Path

import kubernetes_validate
import pytest
import requests
from ruamel.yaml import YAML

from proxy import __version__
from proxy.app import open_registry
from proxy.app.supervisor import _KILL_AFTER_DRAIN_SECONDS
from proxy.pipeline.principals import STALE_MS
from proxy.settings import SettingsError, load
from tests.support.held_upstream import HELD, held_upstream
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import COMMAND, ROOT, Child, clean_environment, eventually

PLACE = ROOT / "deploy/kubernetes"
FILES = sorted(PLACE.glob("*.yaml"))
VERSIONS = ("1.30", "1.34", kubernetes_validate.latest_version())
MIB = 2**20


def documents(path: Path) -> list[dict]:
    return [dict(each) for each in YAML(typ="safe").load_all(path.read_text())]


MANIFESTS = {(each["kind"], each["metadata"]["name"]): each for path in FILES for each in documents(path)}
SECRET = documents(PLACE / "secret.yaml.example")[0]
DEPLOYMENT = MANIFESTS["Deployment", "tollgate"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
SETTINGS = MANIFESTS["ConfigMap", "tollgate"]["data"]["tollgate.toml"]
BUILT_IN = [each for each in [*MANIFESTS.values(), SECRET] if each["kind"] != "ServiceMonitor"]


def named(manifest: dict) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", BUILT_IN, ids=named)
def test_manifests_follow_the_schema_of_kubernetes(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_misspelt_field_would_be_found():
    misspelt = copy.deepcopy(MANIFESTS["Deployment", "tollgate"])
    misspelt["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, VERSIONS[-1], strict=True)


def test_everything_is_there_and_ours():
    assert {kind for kind, _ in MANIFESTS} == {
        "Namespace", "ServiceAccount", "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler",
        "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor",
    }  # fmt: skip
    for (kind, _), manifest in MANIFESTS.items():
        assert manifest["metadata"].get("namespace") == (None if kind == "Namespace" else "tollgate")
        assert manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "tollgate"


def test_the_service_monitor_follows_its_kind_and_finds_the_port():
    """Its kind is the Prometheus Operator's: held to the fields it has there."""
    monitor = MANIFESTS["ServiceMonitor", "tollgate"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"jobLabel", "selector", "namespaceSelector", "endpoints"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "scheme", "interval", "scrapeTimeout"}
    assert set(monitor["spec"]["selector"]) == {"matchLabels"}
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [
        each
        for (kind, _), each in MANIFESTS.items()
        if kind == "Service" and wanted <= each["metadata"]["labels"].items()
    ]
    (service,) = found
    assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
    # The rules and dashboards know a deployment by the label `job`.
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "tollgate"
    assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])


def test_pods_may_do_nothing_they_need_not():
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10_001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert MANIFESTS["ServiceAccount", "tollgate"]["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(POD)
    assert all(set(volume) & {"emptyDir", "configMap", "secret"} for volume in POD["volumes"])
    labels = MANIFESTS["Namespace", "tollgate"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_variables_that_kubernetes_would_add_are_refused_and_not_added():
    assert POD["enableServiceLinks"] is False
    assert ("Service", "tollgate") in MANIFESTS
    with pytest.raises(SettingsError, match="enableServiceLinks"):
        load(None, {"TOLLGATE_SERVICE_HOST": "10.0.0.1"})


def test_the_user_is_that_of_the_image():
    assert re.search(r"^USER 10001:10001$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert CONTAINER["image"] == f"tollgate:{__version__}"


@pytest.fixture
def mounted(tmp_path):
    """The text of the settings with the places of a pod here, and the secrets there."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name, content in {
        "openai_api_key": "sk-some-key",
        "peppers.json": '{"current": 1, "peppers": {"1": "' + "ab" * 32 + '"}}',
        "admin_token": f"tga_{'0' * 64}",
        "cache.key": "A" * 43 + "=",
    }.items():
        (secrets / name).write_text(content)
        (secrets / name).chmod(0o440)
    text = SETTINGS.replace("/etc/tollgate/secrets", str(secrets)).replace("/var/lib/tollgate", str(tmp_path / "data"))
    file = tmp_path / "tollgate.toml"
    file.write_text(text)
    return file


def settings_of(mounted, **variables):
    urls = {
        "TOLLGATE_REDIS_URL": "redis://redis",
        "TOLLGATE_CACHE_REDIS_URL": "redis://redis-cache",
        "TOLLGATE_DATABASE_URL": "postgresql://tollgate@postgres/tollgate",
    }
    return load(mounted, urls | variables)


def test_settings_secrets_and_mounts_are_of_one_mind(mounted):
    settings = settings_of(mounted)
    assert settings.servability() == ()
    given = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in CONTAINER["env"]}
    assert set(given) == {"TOLLGATE_REDIS_URL", "TOLLGATE_CACHE_REDIS_URL", "TOLLGATE_DATABASE_URL"}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    items = {item["key"] for item in volumes["secrets"]["secret"]["items"]}
    named_in_settings = set(re.findall(r'"/etc/tollgate/secrets/([^"]+)"', SETTINGS))
    assert items == named_in_settings
    assert items | {each["key"] for each in given.values()} == set(SECRET["stringData"])
    assert {each["name"] for each in given.values()} | {volumes["secrets"]["secret"]["secretName"]} == {
        SECRET["metadata"]["name"]
    }
    assert volumes["config"]["configMap"]["name"] == "tollgate"
    mounts = {each["name"]: each for each in CONTAINER["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert mounts["data"]["mountPath"] == "/var/lib/tollgate"
    assert mounts["config"]["mountPath"] == CONTAINER["args"][2]
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert ports == {"public": settings.server.port, "operations": settings.server.admin_port}


def test_the_secret_is_an_example_that_nobody_applies():
    assert set(SECRET["stringData"].values()) == {"REPLACE"}
    assert not [
        path for path in PLACE.iterdir() if path.suffix in {".yaml", ".yml", ".json"} and "Secret\n" in path.read_text()
    ]
    # Each is in the command that makes it, too.
    text = (PLACE / "secret.yaml.example").read_text()
    assert set(re.findall(r"--from-literal=([\w.]+)=", text)) == set(SECRET["stringData"])


def test_what_the_command_makes_is_what_is_read(tmp_path, mounted):
    import shlex
    import subprocess

    text = re.sub(r"^# ?", "", (PLACE / "secret.yaml.example").read_text(), flags=re.MULTILINE)
    made = {}
    for name, value in re.findall(r"--from-literal=([\w.]+)=(\".*\")(?: \\)?$", text, re.MULTILINE):
        shown = subprocess.run(["sh", "-c", f"printf %s {value}"], capture_output=True, text=True, check=True,
                               env=clean_environment(OPENAI_API_KEY="sk-some-key"))  # fmt: skip
        made[name] = shown.stdout
    assert shlex.split(made["openai_api_key"]) == ["sk-some-key"]
    for path in (mounted.parent / "secrets").iterdir():
        path.unlink()
        path.write_text(made[path.name])
    settings = settings_of(
        mounted, **{f"TOLLGATE_{name.upper()}": made[name] for name in ("redis_url", "cache_redis_url", "database_url")}
    )
    assert settings.servability() == ()
    from proxy.adapters.admin_token import load_or_create_admin_token
    from proxy.adapters.cache_keys import read_master_keys
    from proxy.adapters.secrets import load_or_create_pepper

    assert load_or_create_pepper(settings.data_dir, settings.pepper_file).latest().current_id == 1
    assert load_or_create_admin_token(settings.data_dir, settings.server.admin_token_file)
    assert read_master_keys(made["cache.key"])


def test_limits_are_shared_among_the_pods_there_are(mounted):
    autoscaler = MANIFESTS["HorizontalPodAutoscaler", "tollgate"]["spec"]
    assert autoscaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "tollgate"}
    assert "replicas" not in DEPLOYMENT, "the autoscaler's"
    assert settings_of(mounted).server.replicas == autoscaler["minReplicas"] >= 2


def test_pods_end_after_their_streams(mounted):
    server = settings_of(mounted).server
    assert server.ready_grace_seconds > 0
    assert POD["terminationGracePeriodSeconds"] > (
        server.drain_seconds + server.ready_grace_seconds + _KILL_AFTER_DRAIN_SECONDS
    )


def test_pods_stay_in_service_for_as_long_as_they_serve_without_the_database():
    probe = CONTAINER["readinessProbe"]
    assert probe["httpGet"]["path"] == "/readyz"
    assert probe["periodSeconds"] * probe["failureThreshold"] * 1_000 == STALE_MS


def test_disks_hold_what_is_put_on_them(mounted):
    settings = settings_of(mounted)
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    limit = int(volumes["data"]["emptyDir"]["sizeLimit"].removesuffix("Mi")) * MIB
    assert limit >= settings.ledger.quota_bytes + 4 * settings.server.max_upload_bytes
    assert int(CONTAINER["resources"]["limits"]["ephemeral-storage"].removesuffix("Gi")) * 1024 * MIB > limit


def test_one_pod_at_a_time_may_be_missing():
    budget = MANIFESTS["PodDisruptionBudget", "tollgate"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert DEPLOYMENT["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    selectors = [
        DEPLOYMENT["selector"]["matchLabels"],
        budget["selector"]["matchLabels"],
        MANIFESTS["Service", "tollgate"]["spec"]["selector"],
        MANIFESTS["NetworkPolicy", "tollgate"]["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in POD["topologySpreadConstraints"]),
    ]
    labels = DEPLOYMENT["template"]["metadata"]["labels"]
    assert all(selector.items() <= labels.items() for selector in selectors)
    assert {each["topologyKey"] for each in POD["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname", "topology.kubernetes.io/zone",
    }  # fmt: skip


def test_the_network_is_closed_but_for_what_is_needed():
    policy = MANIFESTS["NetworkPolicy", "tollgate"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    assert all(rule["to"] and rule["ports"] for rule in policy["egress"])
    (internet,) = [rule for rule in policy["egress"] if rule["to"][0].get("ipBlock", {}).get("cidr") == "0.0.0.0/0"]
    assert {"169.254.0.0/16", "10.0.0.0/8"} <= set(internet["to"][0]["ipBlock"]["except"])
    assert internet["ports"] == [{"port": 443, "protocol": "TCP"}]
    callers, scrapers = (rule["from"][0]["namespaceSelector"]["matchLabels"] for rule in policy["ingress"])
    readme = (ROOT / "deploy/README.md").read_text()
    ((label, value),) = callers.items()
    assert f"kubectl label namespace ingress-nginx {label}={value}" in readme
    assert scrapers == {"kubernetes.io/metadata.name": "monitoring"}


def status(url: str) -> int | None:
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(url, timeout=30).status_code
        except requests.ConnectionError:
            return None


def test_the_container_as_it_is_started(tmp_path, mounted, postgres_url):
    """Its arguments, settings and variables, at other ports; its probes; and its end, after the streams there are."""
    config = mounted.read_text()
    assert 'host = "0.0.0.0"' in config
    mounted.write_text(
        config.replace("0.0.0.0", "127.0.0.1").replace("ready_grace_seconds = 5", "ready_grace_seconds = 1")
    )
    words = [str(mounted) if word == "/etc/tollgate/tollgate.toml" else word for word in CONTAINER["args"]]
    with (
        RedisServer() as limits,
        RedisServer("maxmemory 50mb", "maxmemory-policy allkeys-lru") as answers,
        held_upstream() as upstream,
        requests.Session() as session,
    ):
        session.trust_env = False
        urls = {"redis_url": limits.url, "cache_redis_url": answers.url, "database_url": postgres_url}
        variables = {each["name"]: urls[each["valueFrom"]["secretKeyRef"]["key"]] for each in CONTAINER["env"]}
        environment = clean_environment(
            **variables, TOLLGATE_PORT="0", TOLLGATE_ADMIN_PORT="0", TOLLGATE_UPSTREAM=upstream.base_url
        )
        child = Child([*COMMAND, *words], tmp_path / "log", environment)
        try:
            base_url = child.said(r"serving (http://\S+/v1)", lambda: child.stderr)[1]
            operations = child.said(r"operations on (http://\S+)\n", lambda: child.stderr)[1]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = CONTAINER[probe]["httpGet"]
                assert asked["port"] == "operations"
                eventually(lambda asked=asked: status(operations + asked["path"]) == 200, seconds=60, what=probe)
            ready = operations + CONTAINER["readinessProbe"]["httpGet"]["path"]
            with open_registry(settings_of(mounted, **variables)) as registry:
                registry.add_team("growth", "unlimited")
                key = registry.issue_key("growth").key
            asked = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "How long?"}]}
            headers = {"Authorization": f"Bearer {key}", **HELD}
            answer = session.post(f"{base_url}/chat/completions", json=asked, headers=headers, stream=True, timeout=60)
            assert answer.status_code == 200, answer.text
            child.signal(signal.SIGTERM)
            eventually(lambda: status(ready) == 503, seconds=60, what="not ready while it drains")
            assert status(operations + CONTAINER["livenessProbe"]["httpGet"]["path"]) == 200
            upstream.go_on()
            assert answer.content.endswith(b"data: [DONE]\n\n")
            assert child.wait() == 0
        finally:
            child.end()
