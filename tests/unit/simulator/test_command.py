import json
import signal
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from proxy.cli.simulate import simulate_openai

RUN = [sys.executable, "-c", "from proxy.cli.simulate import simulate_openai; simulate_openai()"]


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_base_url_alone_and_ends_when_told(ending):
    with subprocess.Popen(
        [*RUN, "--tokens", "3", "--api-key-env", "UPSTREAM_KEY"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"UPSTREAM_KEY": "sk-right"},
    ) as process:
        base_url = process.stdout.readline().strip()
        # No proxy of the environment has part in it.
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(
            f"{base_url}/chat/completions",
            json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode(),
            {"Authorization": "Bearer sk-right"},
        )
        with directly.open(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
        process.send_signal(ending)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "Answered 1 requests." in err
    assert "sk-right" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--error-rate", "2"], "--error-rate"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["--latency-ms", "1e9"], "latency_ms"),
        (["--tokens", "many"], "--tokens"),
    ],
)
def test_wrong_use_is_refused(arguments, said):
    result = CliRunner().invoke(simulate_openai, arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_help_shows_examples_line_by_line():
    result = CliRunner().invoke(simulate_openai, ["--help"])
    assert "\n    tollgate simulate-openai --port 9000\n" in result.stdout


def test_a_port_that_is_taken_is_said_plainly():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = subprocess.run(
            [*RUN, "--port", str(taken.getsockname()[1])], capture_output=True, text=True, timeout=60, check=False
        )
    assert result.returncode == 1
    assert "cannot listen on 127.0.0.1" in result.stderr
    assert "Traceback" not in result.stderr
