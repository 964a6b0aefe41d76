"""Several workers behind one port that speaks TLS."""

from __future__ import annotations

import requests

from tests.support.certificates import Authority
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import run_tollgate
from tests.support.workers import until_all_serve


def test_all_workers_serve_the_certificate(simulator, tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("gateway")
    settings = f'[server]\ntls_cert_file = "{certificate}"\ntls_key_file = "{key}"\n'
    with RedisServer() as redis:
        options = ("--workers", "2", "--redis-url", redis.url)
        with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings, options=options) as gateway:
            assert gateway.base_url.startswith("https://")
            until_all_serve(gateway, 2)
            team = gateway.add_team("secure")
            seen = set()
            for _ in range(40):
                with requests.get(f"{gateway.base_url}/models", headers=team.headers, verify=authority.file) as answer:
                    assert answer.status_code == 200
                    seen.add(answer.headers["x-request-id"])
            assert len(seen) == 40
            assert "error" not in gateway.stderr.lower()
