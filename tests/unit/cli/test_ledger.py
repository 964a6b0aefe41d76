"""`tollgate ledger verify`, against a database of its own."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from sqlalchemy import select, text

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.tables import audit_log
from proxy.cli import main
from proxy.core.event import Outcome, UsageEvent
from proxy.core.ids import uuid7
from tests.support.postgres_server import PASSWORD

AT_MS = 20_000 * 86_400_000


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """Options that lead to the data."""
    options = ["--data-dir", str(tmp_path / "data")]
    if request.param == "postgres":
        return [*options, "--database-url", request.getfixturevalue("postgres_url")]
    return options


@pytest.fixture
def run(place):
    return lambda *arguments: CliRunner().invoke(main, ["ledger", "verify", *arguments, *place], prog_name="tollgate")


@pytest.fixture
def engine(place, tmp_path):
    CliRunner().invoke(main, ["teams", "list", *place])
    engine = open_engine(place[3] if len(place) > 2 else tmp_path / "data" / "tollgate.sqlite3")
    yield engine
    engine.dispose()


@pytest.fixture
def account(engine):
    event = UsageEvent(
        event_id=uuid7(AT_MS, bytes(10)),
        at_ms=AT_MS,
        request_id="req",
        team="growth",
        key_id="k" * 12,
        endpoint="chat",
        model="m\x1b[31m",
        upstream="openai",
        status=200,
        outcome=Outcome.OK,
        cost_pico_usd=1_500_000_000_001,
    )
    SqlLedgerStore(engine).take_over([event], f"{'a' * 16}/00000001", 90)
    return engine


def forge(engine, statement):
    with engine.begin() as connection:
        connection.execute(text(statement))


def test_books_that_tie_out_exit_with_0(run, account):
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert "1 events, 1.500000000001 USD" in done.stdout
    assert done.stdout.endswith("the books tie out\n")
    told = json.loads(run("--json").stdout)
    assert (told["ok"], told["events"], told["cost_usd"]) == (True, 1, "1.500000000001")
    assert told["spool"] == {
        "writers": 0, "unshipped_bytes": 0, "unshipped_events": 0, "open_requests": 0, "damaged": []
    }  # fmt: skip


def test_a_corrupted_row_exits_with_1_and_is_named(run, account):
    forge(account, "UPDATE usage_daily SET cost_pico_usd = cost_pico_usd - 1")
    done = run()
    assert (done.exit_code, done.stderr) == (1, "")
    assert (
        f"usage_daily day=2024-10-04 team=growth key={'k' * 12} model=m\\x1b[31m upstream=openai endpoint=chat: "
        "cost_pico_usd is 1500000000000, its events have 1500000000001\n"
    ) in done.stdout
    assert done.stdout.endswith("the books do not tie out: 1 daily totals, 0 events, 0 offsets, 0 segments\n")
    told = run("--json")
    assert told.exit_code == 1
    (mismatch,) = json.loads(told.stdout)["mismatches"]
    assert mismatch == {
        "day": "2024-10-04", "team": "growth", "key": "k" * 12, "model": "m\x1b[31m", "upstream": "openai",
        "endpoint": "chat", "measure": "cost_pico_usd", "daily": 1_500_000_000_000, "events": 1_500_000_000_001,
    }  # fmt: skip


def test_verifying_alone_repairs_nothing(run, account):
    forge(account, "UPDATE usage_daily SET requests = 7")
    assert [run().exit_code for _ in range(2)] == [1, 1]


def test_rebuilding_makes_the_totals_anew_and_is_audited(run, account):
    forge(account, "UPDATE usage_daily SET requests = 7")
    done = run("--rebuild")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("1 daily totals made anew from the events\n")
    assert run().exit_code == 0
    assert json.loads(run("--rebuild", "--json").stdout)["rebuilt_rows"] == 1
    with account.connect() as connection:
        entries = connection.execute(select(audit_log.c.action, audit_log.c.actor)).all()
    assert [action for action, _ in entries] == ["ledger.rebuild"] * 2
    assert all(actor.startswith("cli:") for _, actor in entries)


def test_an_event_of_another_day_an_offset_and_damage_are_named(run, account, tmp_path):
    forge(account, "UPDATE usage_events SET day = '2024-10-05'")
    forge(account, "UPDATE usage_daily SET day = '2024-10-05'")
    forge(account, "UPDATE spool_offsets SET offset_bytes = -3")
    (tmp_path / "data" / "spool" / "damaged").mkdir(parents=True)
    (tmp_path / "data" / "spool" / "damaged" / "kept.spool").touch()
    done = run()
    assert done.exit_code == 1
    assert (
        f"usage_events day=2024-10-05 event_id={uuid7(AT_MS, bytes(10))}: the id was made on 2024-10-04\n"
        in done.stdout
    )
    assert f"spool_offsets segment={'a' * 16}/00000001: -3 cannot be: it is negative\n" in done.stdout
    assert "spool kept.spool: damaged\n" in done.stdout
    told = json.loads(run("--json").stdout)
    assert not told["ok"]
    assert [len(told[name]) for name in ("mismatches", "misdated", "offsets")] == [0, 1, 1]


def test_without_a_ledger_there_is_nothing_to_prove(tmp_path):
    done = CliRunner().invoke(main, ["ledger", "verify", "--data-dir", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "holds no ledger" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_database_that_is_away_is_a_sentence_without_its_password(tmp_path, postgres):
    url = postgres.url("nowhere")
    done = CliRunner().invoke(main, ["ledger", "verify", "--data-dir", str(tmp_path), "--database-url", url])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "did not answer (database, migrate): " in done.stderr
    assert 'database "nowhere" does not exist' in done.stderr
    assert PASSWORD not in done.output
