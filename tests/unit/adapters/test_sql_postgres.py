"""What is particular to Postgres: waits that end, secrets that do not show, writers that take turns."""

import logging
import subprocess
import sys
import threading
import traceback
from contextlib import suppress

import pytest
from sqlalchemy import select, text

from proxy.adapters.sql.engine import open_engine, reading, writing
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.postgres import alone_on
from proxy.adapters.sql.tables import config_revision, metadata
from proxy.core.errors import StoreAway
from proxy.core.registry import DataUnusable
from tests.support.postgres_server import PASSWORD, PostgresServer, wheel_bin_dir


@pytest.fixture
def engine(postgres_url):
    engine = open_engine(postgres_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def mortal():
    """A server that may be frozen, or killed and started again."""
    with PostgresServer() as server:
        yield server


def ask(engine, statement):
    with reading(engine, "test", "ask") as connection:
        return connection.execute(text(statement)).scalar()


def everything_said(error):
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)


def test_the_password_is_shown_nowhere(postgres, caplog):
    caplog.set_level(logging.DEBUG)
    wrong = "an0ther-pass"
    with postgres.database() as name:
        for url in (
            postgres.url(name, password=wrong),
            postgres.url("nowhere"),
            postgres.url(name, port=1),
            postgres.url(name) + "?sslmode=nonsense",
            postgres.url(name) + "?nonsense=1",
        ):
            engine = open_engine(url)
            with pytest.raises(StoreAway) as raised:
                migrate(engine)
            said = everything_said(raised.value) + repr(engine) + str(engine.url)
            engine.dispose()
            assert not any(secret in said + caplog.text for secret in (wrong, PASSWORD))
    assert PASSWORD not in postgres.log()


@pytest.mark.parametrize("url", ["postgresql://u:hunter2@h:port/db", "?://hunter2"])
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(DataUnusable, match="database_url") as raised:
        open_engine(url)
    assert "hunter2" not in everything_said(raised.value)
    assert raised.value.__suppress_context__


def test_without_the_driver_it_is_said_what_to_install():
    program = """
import sys
sys.modules["psycopg"] = None
from proxy.adapters.sql.engine import open_engine
from proxy.core.registry import DataUnusable
try:
    open_engine("postgresql://u:hunter2@127.0.0.1/db")
except DataUnusable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'tollgate[server]'" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_the_session_says_who_it_is_and_gives_up(engine):
    assert ask(engine, "SHOW application_name") == "tollgate"
    assert ask(engine, "SHOW statement_timeout") == "5s"
    assert ask(engine, "SHOW idle_in_transaction_session_timeout") == "1min"
    assert ask(engine, "SHOW client_encoding") == "UTF8"


def test_what_the_url_says_wins(postgres, postgres_url):
    engine = open_engine(
        f"{postgres_url}?application_name=books&options=-c%20statement_timeout%3D3s", patience_seconds=60
    )
    assert ask(engine, "SHOW application_name") == "books"
    assert ask(engine, "SHOW statement_timeout") == "3s"
    assert ask(engine, "SHOW idle_in_transaction_session_timeout") == "1min"
    engine.dispose()


def test_a_statement_that_takes_too_long_is_a_store_that_is_away(postgres_url):
    engine = open_engine(postgres_url, patience_seconds=0.2)
    with pytest.raises(StoreAway):
        ask(engine, "SELECT pg_sleep(600)")
    answers = []
    for _ in range(50):
        # With so little patience, the next one may be given up as well where a machine stands still.
        with suppress(StoreAway):
            answers.append(ask(engine, "SELECT 1"))
            break
    assert answers == [1]
    engine.dispose()


def test_a_server_that_says_nothing_is_a_store_that_is_away_and_its_late_answer_is_nobodys(mortal):
    # It would answer in the end: what it is asked is not too much for itself.
    url = f"{mortal.url()}?options=-c%20statement_timeout%3D60s"
    engine = open_engine(url, patience_seconds=0.1)
    with engine.connect() as connection:
        with mortal.frozen(), pytest.raises(Exception, match="timeout"):
            connection.execute(text("SELECT 7"))
        assert connection.invalidated
    assert ask(engine, "SELECT 8") == 8
    engine.dispose()


def test_a_server_that_is_back_is_found(mortal):
    engine = open_engine(mortal.url())
    migrate(engine)
    mortal.kill()
    with pytest.raises(StoreAway):
        migrate(engine)
    mortal.start()
    assert not migrate(engine)
    engine.dispose()


def test_a_database_that_cannot_hold_every_name_is_refused(postgres):
    with postgres.database(encoding="LATIN1") as name:
        engine = open_engine(postgres.url(name))
        with pytest.raises(DataUnusable, match="LATIN1"):
            migrate(engine)
        engine.dispose()


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_writers_of_one_store_take_turns(postgres, postgres_url, engine, isolation):
    """What one of them has read is still so when it writes, whatever the database does by default."""
    step = config_revision.update()
    name = postgres_url.rpartition("/")[2]
    postgres.ask(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")

    def move_on():
        own = open_engine(postgres_url)
        assert ask(own, "SHOW default_transaction_isolation") == isolation
        for _ in range(20):
            with writing(own, "test", "move on") as connection:
                seen = connection.execute(select(config_revision.c.revision)).scalar_one()
                connection.execute(step.values(revision=seen + 1))
        own.dispose()

    threads = [threading.Thread(target=move_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ask(engine, "SELECT revision FROM config_revision") == 80


def test_writers_of_other_stores_do_not_wait(postgres_url, engine):
    other = open_engine(postgres_url, patience_seconds=20)
    with writing(engine, "one", "hold"), writing(other, "two", "pass") as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    other.dispose()


def test_a_database_is_held_by_one_at_a_time(postgres_url, engine):
    other = open_engine(postgres_url)
    with alone_on(engine) as first, alone_on(other) as second:
        assert (first, second) == (True, False)
    with alone_on(other) as after:
        assert after
    other.dispose()


def test_a_hold_ends_in_peace_when_the_server_has_ended(mortal):
    engine = open_engine(mortal.url())
    with alone_on(engine) as held:
        assert held
        mortal.kill()
    mortal.start()
    with alone_on(engine) as again:
        assert again
    engine.dispose()


def test_the_server_of_the_wheel_serves_as_well():
    with PostgresServer(wheel_bin_dir()) as server:
        engine = open_engine(server.url())
        assert migrate(engine)
        with reading(engine, "test", "tables") as connection:
            assert all(connection.execute(select(table)).all() is not None for table in metadata.sorted_tables)
        engine.dispose()


def test_a_report_is_read_at_one_instant(engine, postgres_url):
    other = open_engine(postgres_url)
    with reading(engine, "test", "report") as connection:
        before = connection.execute(select(config_revision.c.revision)).scalar_one()
        with writing(other, "test", "change") as elsewhere:
            elsewhere.execute(config_revision.update().values(revision=before + 1))
        assert connection.execute(select(config_revision.c.revision)).scalar_one() == before
    other.dispose()
