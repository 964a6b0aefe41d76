"""`make run` on a fresh clone: nothing but Python and make, and a curl line that works."""

from __future__ import annotations

import json
import re
import signal
import subprocess

import pytest
import requests

from tests.support.tollgate_process import ROOT, Child, clean_environment, eventually

INSTALL_SECONDS = 240
PRINTED = ("base URL", "key", "page", "metrics")
_OF_THIS_PYTHON = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}


def make_run(clone, log_dir, data_dir, **environment):
    """`make run` as a person would, but on free ports and with a data directory to throw away."""
    arguments = f"ARGS=--port 0 --admin-port 0 --data-dir {data_dir}"
    # What the test itself runs with must not stand in for what the clone installs.
    own = {name: value for name, value in clean_environment(**environment).items() if name not in _OF_THIS_PYTHON}
    return Child(["make", "--directory", str(clone), "run", arguments], log_dir, own)


def welcome(child):
    """What it prints: where to send what, and the line to paste."""
    curl = child.said(r"^  (curl http.*)\n", lambda: child.stdout, seconds=INSTALL_SECONDS)[1]
    said = child.stdout
    found = {name: re.search(rf"^  {name} +(\S+)$", said, re.MULTILINE)[1] for name in PRINTED}
    found["team's page"] = re.search(r"^ +(http\S+) is the team's", said, re.MULTILINE)[1]
    assert found["base URL"] in curl
    assert found["key"] in curl
    return found, curl


def paste(curl):
    """Status and body that bash gets of the line, as it was printed."""
    done = subprocess.run(
        ["bash", "-c", f"{curl} --silent --show-error --noproxy '*' --max-time 60 --write-out '\\n%{{http_code}}'"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def end(child):
    """Ctrl-C, as a terminal sends it: to everyone in the foreground."""
    child.signal_group(signal.SIGINT)
    child.wait()
    assert "Traceback" not in child.stderr


@pytest.mark.timeout(INSTALL_SECONDS + 60)
def test_a_fresh_clone_serves_with_one_command(tmp_path, simulator):
    """One test, so that the environment is made once: first start, second start, start with a key of OpenAI's."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to clone: this is an unpacked archive")
    clone, data_dir = tmp_path / "clone", tmp_path / "data"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", clone], check=True)

    first = make_run(clone, tmp_path / "first", data_dir)
    try:
        places, curl = welcome(first)
        assert "simulated OpenAI upstream (OPENAI_API_KEY is not set)" in first.stdout
        status, answer = paste(curl)
        assert status == 200
        assert answer["choices"][0]["message"]["content"]
        for place in ("page", "team's page", "metrics"):
            assert requests.get(places[place], timeout=10).status_code == 200
        logged = eventually(lambda: re.search(r'^\{.*"event":"request".*\}$', first.stdout, re.MULTILINE))
        assert json.loads(logged[0])["status"] == 200
        end(first)
    finally:
        first.end()

    second = make_run(clone, tmp_path / "second", data_dir)
    try:
        again, curl = welcome(second)
        assert again["key"] != places["key"]
        assert paste(curl)[0] == 200
        assert paste(curl.replace(again["key"], places["key"]))[0] == 200
        end(second)
    finally:
        second.end()

    simulator.reset()
    third = make_run(
        clone, tmp_path / "third", data_dir, OPENAI_API_KEY=simulator.key, TOLLGATE_UPSTREAM=simulator.base_url
    )
    try:
        _, curl = welcome(third)
        assert f"Tollgate forwards to {simulator.base_url}." in third.stdout
        assert paste(curl)[0] == 200
        assert simulator.idle_stats()["by_status"] == {"200": 1}
        assert simulator.last_headers()["authorization"] == simulator.key_digest
        assert simulator.key not in third.stdout + third.stderr
        end(third)
    finally:
        third.end()
