"""What a trial is told at its start."""

import pytest

from proxy.app.database import open_database
from proxy.app.demo import welcome
from proxy.settings import load

PAGES = [
    "  page      http://127.0.0.1:8081/",
    "            http://127.0.0.1:8080/tollgate is the team's, opened with its key",
]


@pytest.mark.parametrize("pages", [True, False])
async def test_pages_are_named_where_there_are_some(tmp_path, capsys, pages):
    settings = load(environ={"TOLLGATE_PAGES": str(pages).lower()}, overrides={"data_dir": str(tmp_path / "data")})
    with open_database(settings) as engine:
        await welcome(settings, engine, "http://127.0.0.1:8080/v1", "http://127.0.0.1:8081")
    said = capsys.readouterr().out.splitlines()
    assert "  metrics   http://127.0.0.1:8081/metrics" in said
    assert [line in said for line in PAGES] == [pages] * 2
