"""Peppers of a running server: taken up without a restart, and proved at the start."""

from __future__ import annotations

import json
import shutil
import subprocess

from tests.support.redis_server import eventually
from tests.support.tollgate_process import COMMAND, clean_environment, run_tollgate

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "echo:x"}]}


def status(session, gateway, key):
    headers = {"Authorization": f"Bearer {key}"}
    return session.post(f"{gateway.base_url}/chat/completions", json=ASK, headers=headers, timeout=30).status_code


def test_a_running_server_takes_up_a_new_pepper_and_lets_go_of_the_old_one(simulator, tmp_path, session):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        team = gateway.add_team("seasoned")
        assert status(session, gateway, team.key) == 200
        gateway.cli("keys", "pepper", "rotate")
        fresh = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json"))["key"]
        # It looks for changes a few times a second; who knows of the last one knows of those before it.
        gone = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json"))
        assert status(session, gateway, gone["key"]) == 200
        gateway.cli("keys", "revoke", gone["id"])
        eventually(lambda: status(session, gateway, gone["key"]) == 401, "the server knows what has changed")
        assert [status(session, gateway, key) for key in (fresh, team.key)] == [200, 200]
    # What was learned of the old key is written at the latest when the server ends.
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        needed = {row["version"]: row["keys"] for row in json.loads(gateway.cli("keys", "pepper", "list", "--json"))}
        assert needed == {1: 0, 2: 1}
        gateway.cli("keys", "pepper", "retire", "1")
        assert [status(session, gateway, key) for key in (fresh, team.key)] == [200, 200]
        listed = json.loads(gateway.cli("keys", "list", "--json"))
        assert all(row["last_used"] for row in listed)


def test_a_server_with_another_pepper_than_the_databases_does_not_start(simulator, tmp_path):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        gateway.add_team("seasoned")
        place = gateway.data_dir
    (place / "peppers.json").unlink()
    done = subprocess.run(
        (*COMMAND, "serve", "--data-dir", str(place), "--upstream", simulator.base_url, "--port", "0"),
        env=clean_environment(OPENAI_API_KEY="sk-upstream"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pepper of version 1 here is not the one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_without_a_pepper_that_keys_need_says_so_and_serves_the_others(simulator, tmp_path, session):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        team = gateway.add_team("seasoned")
        late = tmp_path / "late.json"
        shutil.copy(gateway.data_dir / "peppers.json", late)
        gateway.cli("keys", "pepper", "rotate")
        fresh = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json"))["key"]
        gateway.cli("keys", "issue", "--team", team.name)
    settings = f'pepper_file = "{late}"\n'
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings) as gateway:
        missed = "2 keys are hashed under pepper 2, which is not here"
        eventually(lambda: missed in gateway.stderr, "what is missing is said")
        assert [status(session, gateway, key) for key in (team.key, fresh)] == [200, 401]
        refused = "a key was refused that is hashed under pepper 2"
        eventually(lambda: refused in gateway.stderr, "the refusal is said")
    assert fresh not in gateway.stderr
