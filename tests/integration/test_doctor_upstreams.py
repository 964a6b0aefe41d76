"""What `tollgate doctor` says of upstreams, their keys and their clocks."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from email.utils import formatdate
from time import time

import pytest

from tests.support.certificates import Authority, server_context
from tests.support.doctor import Doctor, answering
from tests.support.forward_proxy import ForwardProxy
from tests.support.redis_server import free_port

KEY = "sk-a-key-that-nobody-may-see"
MODELS = json.dumps({"object": "list", "data": [{"id": "gpt-4o"}, {"id": "gpt-4o-mini"}]}).encode()


@pytest.fixture
def doctor(tmp_path):
    return Doctor(tmp_path)


def refusal(code: str) -> bytes:
    return json.dumps({"error": {"message": f"no good: {KEY}", "code": code}}).encode()


def test_a_good_key_is_said_to_be_good_and_nothing_is_spent(doctor, upstream):
    told = doctor("", "--upstream", upstream.base_url, OPENAI_API_KEY=upstream.key)
    assert told.status == 0
    verdict, said, remedy = told["upstream.openai"]
    assert (verdict, remedy) == ("ok", "")
    assert said.startswith(f"{upstream.base_url} answers; the key is good; ")
    assert told.verdict("clock.openai") == "ok"
    stats = upstream.idle_stats()
    assert (stats["requests"], stats.get("input_tokens", 0), stats.get("output_tokens", 0)) == (1, 0, 0)
    assert not doctor.data_dir.exists(), "looking makes nothing"


def test_a_wrong_key_is_told_apart_and_not_shown(doctor, upstream):
    told = doctor("", "--upstream", upstream.base_url, OPENAI_API_KEY=KEY)
    assert told.status == 1
    verdict, said, remedy = told["upstream.openai"]
    assert (verdict, said) == ("fail", f"the key is refused by {upstream.base_url} (401 invalid_api_key)")
    assert "OPENAI_API_KEY" in remedy
    assert KEY not in told.printed


def test_no_key_where_one_is_wanted(doctor, upstream):
    verdict, said, remedy = doctor("", "--upstream", upstream.base_url)["upstream.openai"]
    assert verdict == "fail"
    assert "wants a key, and there is none" in said
    assert "OPENAI_API_KEY" in remedy


def test_openai_without_a_key_is_a_fault_of_the_settings(doctor):
    told = doctor("[outgoing]\nhttps_proxy = 'http://127.0.0.1:1'\n")
    assert told.status == 1
    assert told.verdict("settings") == "fail"
    assert "OPENAI_API_KEY" in told["settings"][2]


def test_every_key_of_every_upstream_has_a_line(doctor, upstream):
    with answering(200, MODELS) as other:
        told = doctor(
            f"[upstreams.first]\nbase_url = '{upstream.base_url}'\napi_key_variable = 'KEYS'\n"
            f"[upstreams.second]\nbase_url = '{other}'\nkind = 'compatible'\n",
            KEYS=f"{upstream.key} {KEY}",
        )
    assert told.status == 1
    assert told.verdict("upstream.first.key1") == "ok"
    verdict, said, remedy = told["upstream.first.key2"]
    assert (verdict, "401" in said, "the variable KEYS" in remedy) == ("fail", True, True)
    assert told["upstream.second"][:2] == ("ok", f"{other} answers; it asks for no key; 2 models")
    assert {"clock.first", "clock.second"} <= set(told.checks)
    assert KEY not in told.printed
    assert upstream.key not in told.printed


@pytest.mark.parametrize(
    ("status", "body", "verdict", "words"),
    [
        (200, b"<html>Please log in</html>", "warn", "no list of models"),
        (403, refusal("unsupported_country_region_territory"), "warn", "403 unsupported_country_region_territory"),
        (404, b"", "fail", "no list of models"),
        (429, refusal("rate_limit_exceeded"), "warn", "at its limit"),
        (429, refusal("insufficient_quota"), "fail", "nothing left to spend"),
        (503, b"", "warn", "answers 503"),
        (401, f'{{"error": {{"code": "{KEY}"}}}}'.encode(), "fail", "(401)"),
    ],
)
def test_answers_are_told_apart(doctor, status, body, verdict, words):
    with answering(status, body) as url:
        told = doctor("", "--upstream", url, OPENAI_API_KEY=KEY)
    assert told.verdict("upstream.openai") == verdict
    assert words in told["upstream.openai"][1]
    assert told.status == (1 if verdict == "fail" else 0)
    assert KEY not in told.printed


def test_a_redirect_is_named_and_not_followed(doctor):
    with answering(200, MODELS) as there, answering(301, headers={"Location": there}) as url:
        verdict, said, _ = doctor("", "--upstream", url, OPENAI_API_KEY=KEY)["upstream.openai"]
    assert verdict == "fail"
    assert "leads elsewhere (301)" in said


def test_a_closed_port(doctor):
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert doctor("", "--upstream", url, OPENAI_API_KEY=KEY)["upstream.openai"][:2] == (
        "fail",
        "127.0.0.1 takes no connection: Connection refused",
    )


def test_a_name_that_nobody_knows(doctor):
    verdict, said, _ = doctor("", "--upstream", "http://no-such-host.invalid/v1", OPENAI_API_KEY=KEY)["upstream.openai"]
    assert (verdict, said) == ("fail", "the name no-such-host.invalid is not known here")


def test_a_server_that_says_nothing(doctor):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        told = doctor("[upstream]\nread_timeout_seconds = 0.2\n", "--upstream", url, OPENAI_API_KEY=KEY)
    assert told["upstream.openai"][:2] == ("fail", "127.0.0.1 does not answer in time")


def test_certificates_are_proved(doctor, tmp_path):
    authority = Authority(tmp_path)
    with answering(200, MODELS, tls=server_context(authority.issue("upstream"))) as url:
        verdict, said, remedy = doctor("", "--upstream", url, OPENAI_API_KEY=KEY)["upstream.openai"]
        assert verdict == "fail"
        assert said.startswith("127.0.0.1 shows a certificate that is not good: ")
        assert "upstream.ca_file" in remedy
        trusting = f"[upstream]\nca_file = '{authority.file}'\n"
        assert doctor(trusting, "--upstream", url, OPENAI_API_KEY=KEY).verdict("upstream.openai") == "ok"
        (tmp_path / "none.pem").write_text("nothing")
        wrong = doctor(f"[upstream]\nca_file = '{tmp_path}/none.pem'\n", "--upstream", url, OPENAI_API_KEY=KEY)
    assert wrong.verdict("settings") == "fail"
    assert f"{tmp_path}/none.pem holds no certificates in PEM" in wrong["settings"][1]


def test_https_where_there_is_none(doctor):
    with answering(200, MODELS) as url:
        told = doctor("", "--upstream", url.replace("http:", "https:"), OPENAI_API_KEY=KEY)
    assert told["upstream.openai"][:2] == ("fail", "127.0.0.1 speaks no TLS there")


@contextmanager
def proxied(*, refuses: bool):
    """A proxy of the network, on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    proxy = ForwardProxy(9, refuses=refuses)
    asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_proxy_that_is_away_or_refuses_is_named_without_its_password(doctor):
    port = free_port()
    told = doctor(
        "",
        "--upstream",
        "https://api.example/v1",
        OPENAI_API_KEY=KEY,
        HTTPS_PROXY=f"http://someone:hunter2@127.0.0.1:{port}",
    )
    assert told["upstream.openai"][1] == (
        f"the proxy 127.0.0.1:{port}, by which api.example is called, cannot be reached"
    )
    assert "hunter2" not in told.printed
    with proxied(refuses=True) as proxy:
        variable = f"http://someone:hunter2@127.0.0.1:{proxy.port}"
        told = doctor("", "--upstream", "https://api.example/v1", OPENAI_API_KEY=KEY, HTTPS_PROXY=variable)
    assert told.verdict("upstream.openai") == "fail"
    assert told["upstream.openai"][1].endswith("by which api.example is called, answers 407")
    assert "hunter2" not in told.printed


@pytest.mark.parametrize(("off_seconds", "verdict"), [(0, "ok"), (20, "warn"), (-20, "warn"), (3_600, "fail")])
def test_the_clock_is_held_against_what_upstream_says_the_time_is(doctor, off_seconds, verdict):
    with answering(200, MODELS, date=lambda: formatdate(time() + off_seconds, usegmt=True)) as url:
        told = doctor("", "--upstream", url, OPENAI_API_KEY=KEY)
    assert told.verdict("clock.openai") == verdict
    if off_seconds:
        assert ("behind" if off_seconds > 0 else "ahead of") in told["clock.openai"][1]


def test_an_upstream_that_tells_no_time_is_no_clock(doctor):
    with answering(200, MODELS, date=lambda: "yesterday") as url:
        told = doctor("", "--upstream", url, OPENAI_API_KEY=KEY)
    assert told.status == 0
    assert "clock.openai" not in told.checks


def test_an_azure_resource_is_asked_in_its_own_way(doctor):
    with answering(200, MODELS) as url:
        resource = url.removesuffix("/v1")
        told = doctor(
            f"[upstreams.azure]\nkind = 'azure'\nbase_url = '{resource}'\napi_key_variable = 'AZURE'\n"
            "models = { 'gpt-4o' = 'ours' }\n",
            AZURE=KEY,
        )
    assert told["upstream.azure"][:2] == ("ok", f"{resource} answers; the key is good; 2 models")
