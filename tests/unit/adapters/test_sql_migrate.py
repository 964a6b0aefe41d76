import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, select, text

from proxy.adapters.sql import migrations
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.migrate import HEAD, SchemaUnknown, migrate
from proxy.adapters.sql.rows import key_of, secrets_in, team_of
from proxy.adapters.sql.tables import api_keys, audit_log, config_revision, metadata, teams
from proxy.core.errors import StoreAway
from proxy.core.principal import CacheMode, KeyRecord, KeySecret, Team


@pytest.fixture
def engine(empty_database):
    engine = open_engine(empty_database)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(tmp_path):
    engine = open_engine(tmp_path / "data" / "tollgate.db")
    yield engine
    engine.dispose()


def upgrade(engine, revision):
    """Run the migrations from nothing, as the first release that had each of them did."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def schema_of(engine):
    """All that a database says of its tables, with what is in them."""
    with engine.connect() as connection:
        seen = inspect(connection)
        return {
            table: {
                "columns": [column | {"type": repr(column["type"])} for column in seen.get_columns(table)],
                "primary_key": seen.get_pk_constraint(table),
                "foreign_keys": seen.get_foreign_keys(table),
                "indexes": sorted(seen.get_indexes(table), key=lambda index: index["name"]),
                "uniques": seen.get_unique_constraints(table),
                "checks": seen.get_check_constraints(table),
                "rows": connection.execute(text(f"SELECT * FROM {table}")).all(),
            }
            for table in seen.get_table_names()
        }


def test_an_empty_database_is_made_what_the_migrations_make_of_it(engine):
    assert migrate(engine)
    made = schema_of(engine)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))
    assert schema_of(engine) == {}
    upgrade(engine, "head")
    assert schema_of(engine) == made
    assert set(made) == {*metadata.tables, "alembic_version"}


@pytest.mark.parametrize("make", [migrate, lambda engine: upgrade(engine, "head")], ids=["at once", "by migrations"])
def test_the_schema_is_the_one_the_statements_are_written_for(engine, make):
    make(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        names = {table.name: table.primary_key.name for table in metadata.sorted_tables}
        made = {name: inspect(connection).get_pk_constraint(name)["name"] for name in names}
        assert made == names
        assert connection.execute(select(config_revision.c.id, config_revision.c.revision)).all() == [(1, 0)]


def test_head_is_the_newest_revision():
    assert ScriptDirectory(Path(migrations.__file__).parent).get_current_head() == HEAD


def test_a_second_run_finds_nothing_to_do(engine):
    assert migrate(engine)
    assert not migrate(engine)


def test_neither_a_first_start_nor_a_later_one_costs_an_import_of_alembic(empty_database):
    program = """
        import sys
        from proxy.adapters.sql.engine import open_engine
        from proxy.adapters.sql.migrate import migrate
        assert migrate(open_engine(sys.argv[1]))
        assert not migrate(open_engine(sys.argv[1]))
        assert "alembic" not in sys.modules
        assert "://" in sys.argv[1] or "psycopg" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(empty_database)], check=True, timeout=60)


def test_processes_that_start_at_once_migrate_once(empty_database):
    program = """
        import sys
        from proxy.adapters.sql.engine import open_engine
        from proxy.adapters.sql.migrate import migrate
        print("ready", flush=True)
        sys.stdin.read()
        print(migrate(open_engine(sys.argv[1], patience_seconds=60)))
    """
    path = str(empty_database)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
    for process in processes:
        process.stdin = None
    answers = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert sorted(out.strip() for out, _ in answers) == ["False", "False", "False", "True"]


def test_what_the_first_schema_held_is_held_by_this_one(engine):
    upgrade(engine, "0001")
    with engine.begin() as connection:
        team = {"tier": "free", "tier_since_ms": 5, "cache_mode": "off", "allow_stateful": False, "created_at_ms": 5}
        key = {"kid": "k", "team": "growth", "label": "ci", "created_at_ms": 6, "pepper_id": 1, "secret_hash": b"h"}
        noted = {"at_ms": 5, "actor": "ada", "details": "{}"}
        for table, row in (
            ("teams", team | {"name": "growth", "cache_secret": b"s"}),
            ("api_keys", key),
            ("audit_log", noted | {"action": "team.add", "subject": "growth"}),
            ("audit_log", noted | {"action": "key.issue", "subject": "k"}),
        ):
            names = ", ".join(row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{names.replace(', ', ', :')})"), row)
    assert migrate(engine)
    with engine.connect() as connection:
        (row,) = connection.execute(select(teams)).mappings()
        assert team_of(row, {}) == Team("growth", "free", 5, None, CacheMode.OFF, created_at_ms=5, cache_secret=b"s")
        (row,) = connection.execute(select(api_keys)).mappings()
        secrets = secrets_in(connection)["k"]
        assert secrets == [KeySecret(1, 1, b"h", 6)]
        assert key_of(row, secrets) == KeyRecord(
            "k", "growth", "ci", 6, None, None, None, tuple(secrets), created_by="ada"
        )
        by_team = select(audit_log.c.action, audit_log.c.team).order_by(audit_log.c.id)
        assert connection.execute(by_team).all() == [("team.add", "growth"), ("key.issue", "growth")]


def test_budgets_and_keys_of_the_schema_before_are_as_they_were(engine):
    kept = {
        "teams": {"name": "growth", "tier": "payg", "tier_since_ms": 5, "tokens_per_minute": 70, "max_parallel": 3,
                  "cache_mode": "all", "allow_stateful": True, "created_at_ms": 5, "cache_secret": b"s",
                  "shadow_tier": "free", "shadow_since_ms": 6},
        "api_keys": {"kid": "k", "team": "growth", "label": "ci", "created_at_ms": 6, "expires_at_ms": 9,
                     "requests_per_minute": 7, "max_parallel": 2, "created_by": "ada", "last_used_at_ms": 8},
        "key_secrets": {"secret_hash": b"h", "kid": "k", "serial": 2, "pepper_id": 1, "created_at_ms": 6,
                        "ends_at_ms": 8, "imported": True},
        "budgets": {"team": "growth", "kid": "k", "period": "day", "limit_nano_usd": 5, "warn_nano_usd": 4},
    }  # fmt: skip
    upgrade(engine, "0005")
    with engine.begin() as connection:
        for table, row in kept.items():
            names = ", ".join(row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{names.replace(', ', ', :')})"), row)
    assert migrate(engine)
    with engine.connect() as connection:
        for table, row in kept.items():
            (found,) = connection.execute(text(f"SELECT * FROM {table}")).mappings()
            assert {name: bytes(found[name]) if isinstance(row[name], bytes) else found[name] for name in row} == row
        (row,) = connection.execute(select(teams)).mappings()
        assert team_of(row, {}).weight == 1
        (row,) = connection.execute(select(api_keys)).mappings()
        assert key_of(row, ()).max_wait_ms is None


def test_a_newer_schema_is_left_alone(engine):
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaUnknown, match="9999"):
        migrate(engine)


def test_a_migration_that_fails_leaves_nothing_behind(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE usage_daily (day TEXT)"))
    with pytest.raises(StoreAway):
        migrate(engine)
    assert set(inspect(engine).get_table_names()) == {"usage_daily"}


def test_files_are_the_owners_alone(sqlite, tmp_path):
    migrate(sqlite)
    data = tmp_path / "data"
    with sqlite.begin():
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in data.iterdir()}
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert modes == {"tollgate.db": 0o600, "tollgate.db-wal": 0o600, "tollgate.db-shm": 0o600}


def test_connections_keep_what_they_commit(sqlite):
    with sqlite.connect() as connection:
        asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]
    assert values == ["wal", 2, 1, 10_000]


def test_an_sqlite_url_is_a_path_too(tmp_path):
    path = tmp_path / "deep" / "tollgate.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_database_is_a_store_that_is_away(tmp_path):
    path = tmp_path / "tollgate.db"
    path.write_bytes(b"not a database, whatever its name says" * 100)
    engine = open_engine(path)
    with pytest.raises(StoreAway):
        migrate(engine)
    engine.dispose()
