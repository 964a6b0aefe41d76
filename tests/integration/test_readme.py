"""Every fenced block of the README is run; one that nobody here knows how to run fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxy.adapters.webhook import signature
from proxy.settings import load
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import ROOT, clean_environment, run_tollgate
from tests.support.workers import ask, has_ended, until_all_serve, workers_of

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BASE_URL, KEY = "http://127.0.0.1:8080/v1", "sk-tg_..."
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server(simulator, tmp_path_factory):
    with run_tollgate(tmp_path_factory.mktemp("readme"), simulator.base_url, simulator.key) as running:
        yield running


@pytest.fixture(scope="module")
def reader(server):
    return server.add_team("reader")


def run(arguments, text, server, team, *, cwd=ROOT):
    """Run a block as its reader would, with the running server's address, key and data in place of the example's."""
    environment = clean_environment(
        TEAM_KEY=team.key,
        TOLLGATE_DATA_DIR=str(server.data_dir),
        PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}",
        NO_PROXY="127.0.0.1",
    )
    filled_in = text.replace(BASE_URL, server.base_url).replace(KEY, team.key)
    done = subprocess.run(
        arguments, input=filled_in, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return done.stdout


def run_make_targets(text, server, team, node):
    """`make run` is run by its own test, and `make test` runs this one: here the targets must be there."""
    commands = [line.split("#")[0].split() for line in text.splitlines()]
    assert commands == [["make", "run"], ["make", "test"]]
    for command in commands:
        planned = run(["bash", "-e"], f"{' '.join(command)} --dry-run VENV={server.data_dir}/none", server, team)
        assert planned


def run_commands(text, server, team, node):
    """Each of the lines, in order."""
    out = run(["bash", "-e", "-u", "-o", "pipefail"], text, server, team)
    assert out


def run_team_commands(text, server, team, node):
    run_commands(text, server, team, node)
    listed = json.loads(server.cli("keys", "list", "--json"))
    assert [(row["team"], row["state"]) for row in listed if row["label"] == "ci"] == [("growth", "live")]


def run_curl(text, server, team, node):
    answer = json.loads(run(["bash", "-e"], text.replace("curl ", "curl --silent --fail ", 1), server, team))
    assert answer["choices"][0]["message"]["content"]


def run_admin_calls(text, server, team, node):
    """Each call is answered with what it says; the team of the key is made first."""
    server.cli("teams", "add", "growth-by-api")
    here = text.replace("http://127.0.0.1:8081", server.operations_url).replace('"growth"', '"growth-by-api"')
    out = run(["bash", "-e"], here.replace("curl ", "curl --silent --show-error --fail -w '\\n' "), server, team)
    teams, key = map(json.loads, out.splitlines())
    assert "growth-by-api" in {each["name"] for each in teams["data"]}
    assert (key["team"], key["label"], key["state"]) == ("growth-by-api", "deploy", "live")


def run_python(text, server, team, node):
    assert BASE_URL in text
    assert KEY in text
    assert run([sys.executable, "-W", "error::DeprecationWarning", "-"], text, server, team).strip()


def check_a_signature(text, server, team, node):
    """The check that is shown takes what we sign, and nothing else."""
    told: dict = {}
    exec(text, told)
    check, now, body = told["is_from_tollgate"], int(time.time()), b'{"team":"growth"}'
    assert check("secret", signature(b"secret", now, body), body)
    assert not check("another", signature(b"secret", now, body), body)
    assert not check("secret", signature(b"secret", now, body), body + b" ")
    assert not check("secret", signature(b"secret", now - 3_600, body), body)


def run_budget_commands(text, server, team, node):
    run_commands(text, server, team, node)
    (row,) = [row for row in json.loads(server.cli("teams", "list", "--json")) if row["name"] == "search"]
    assert [(each["period"], each["limit_usd"], each["warn_usd"]) for each in row["budgets"]] == [
        ("month", "500.00", "400.00")
    ]


def load_several_upstreams(text, server, team, node):
    """The settings that are shown are whole, and say what the words beside them do."""
    file = server.data_dir / "several.toml"
    file.write_text(text)
    settings = load(file, {"OPENAI_KEYS": "sk-one sk-two", "AZURE_OPENAI_API_KEY": "sk-three"})
    assert settings.servability() == ()
    assert {name: len(each.api_keys) for name, each in settings.upstreams.items()} == {"openai": 2, "azure": 1}
    assert settings.models.aliases == {"fast": "gpt-4o-mini"}


def run_js(text, server, team, node):
    assert BASE_URL in text
    assert KEY in text
    assert run(["node", "--input-type=module"], text, server, team, cwd=node()).strip()


def serve_with_workers(text, simulator, place):
    """The options of the example, with our own Redis, upstream, ports and data: it serves, and it ends."""
    (line,) = text.splitlines()
    command, *options = shlex.split(line)
    assert command == "tollgate"
    assert options.pop(0) == "serve"
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert set(given) == {"--workers", "--redis-url", "--upstream"}
    assert int(given["--workers"]) > 1
    with RedisServer() as redis:
        given["--redis-url"] = redis.url
        del given["--upstream"]
        flat = [word for pair in given.items() for word in pair]
        with run_tollgate(place, simulator.base_url, simulator.key, options=flat) as running:
            until_all_serve(running, int(given["--workers"]))
            assert ask(running, running.add_team("reader")).status_code == 200
            assert redis.calls("evalsha") > 0
            processes = workers_of(running)
            running.signal(signal.SIGTERM)
            assert running.wait() == 0
            assert all(has_ended(process) for process in processes)


def meet_the_refusal(text, server, team, node):
    """The 429 that is shown is the 429 that comes, but for the part of three seconds that is left to wait."""
    shown = json.loads(text)
    name = re.search(r"of team (\S+)", shown["error"]["message"])[1]
    limited = server.add_team(f"{name}-limited", "free")
    body = f'{{"model": "{shown["error"]["message"].split()[4]}", "messages": [{{"role": "user", "content": "x"}}]}}'
    curl = f"curl --silent {BASE_URL}/chat/completions -H 'Authorization: Bearer {KEY}' --data '{body}'"
    # Something comes back every three seconds: it is asked until nothing has.
    loop = f"""for each in $(seq 200); do
        told=$({curl}); echo "$told"
        case $told in *'"error"'*) break; esac
    done"""
    told = run(["bash"], loop, server, limited)
    refusals = [line for line in map(json.loads, told.splitlines()) if "error" in line]
    assert refusals

    def timeless(error):
        return {**error, "message": re.sub(r"in [\d.]+m?s\.$", "in a while.", error["message"])}

    came = timeless(refusals[0]["error"])
    assert {**came, "message": came["message"].replace(f"{name}-limited", name)} == timeless(shown["error"])


def follow_the_line(text, server, team, node):
    """The drawing names the steps as the code does."""
    assert text.startswith("flowchart ")
    steps = re.findall(r"\b(authenticate|interpret|lookup|admit|forward|relay|settle)\b", text)
    assert steps
    for step in steps:
        assert (ROOT / f"proxy/pipeline/{step}.py").is_file()


RUNNERS = [
    ("sh", r"make run\b", run_make_targets),
    ("sh", r"curl http", run_curl),
    ("sh", r"tollgate teams add growth\b", run_team_commands),
    ("sh", r"tollgate teams add search --budget ", run_budget_commands),
    ("python", r"import hashlib, hmac, time\n", check_a_signature),
    ("sh", r"token=\$\(tollgate admin token\)\n", run_admin_calls),
    ("sh", r"tollgate check --config deploy/", run_commands),
    ("sh", r"tollgate serve --workers ", serve_with_workers),
    ("toml", r"\[upstreams\.", load_several_upstreams),
    ("python", r"from openai import OpenAI\n", run_python),
    ("js", r'import OpenAI from "openai";\n', run_js),
    ("json", r'\{"error": ', meet_the_refusal),
    ("mermaid", r"flowchart ", follow_the_line),
]
"""Language, how the block begins, and what runs it."""


def runner_of(language, text):
    found = [run_it for kind, beginning, run_it in RUNNERS if kind == language and re.match(beginning, text)]
    assert len(found) == 1, f"nobody here knows how to run this block of the README:\n{text}"
    return found[0]


def test_there_are_blocks_and_all_of_them_are_read():
    assert len(BLOCKS) * 2 == len(re.findall(r"^\s*(?:```|~~~)", README, re.MULTILINE))
    assert {language for language, _ in BLOCKS} >= {"sh", "python", "js"}


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[text.splitlines()[0][:40] for _, text in BLOCKS])
def test_a_block(language, text, server, reader, request, tmp_path):
    run_it = runner_of(language, text)
    if run_it is serve_with_workers:
        run_it(text, request.getfixturevalue("simulator"), tmp_path)
        return
    # Only what needs Node asks for it, so that its absence skips nothing else.
    run_it(text, server, reader, lambda: request.getfixturevalue("node"))


def test_a_block_that_is_new_fails():
    with pytest.raises(AssertionError, match="nobody here knows"):
        runner_of("sh", "tollgate brew --coffee\n")


def test_inline_commands_exist(server):
    """`tollgate ...` in running text: the command and its options are there."""
    inline = set(re.findall(r"`(tollgate [^`]+)`", README))
    assert inline
    for command in inline:
        words = [word for word in command.split()[1:] if word.islower() and not word.startswith("-")]
        helped = server.cli(*words, "--help", place=False)
        for option in re.findall(r"--[a-z-]+", command):
            assert option in helped


def test_documented_places_answer(server, session):
    for path in ("/metrics", "/healthz", "/readyz"):
        assert f"{path}`" in README
        assert session.get(f"{server.operations_url}{path}", timeout=10).status_code == 200


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
