"""An SQLite file that one process opens more than once, while others open it too."""

import sqlite3
import stat
import subprocess
import sys

from proxy.adapters.sql.engine import open_engine, reading

SWITCH = (
    "import sqlite3, sys; place = sqlite3.connect(sys.argv[1], timeout=0); "
    "print(place.execute('PRAGMA journal_mode=DELETE').fetchone()[0])"
)


def test_opening_it_again_gives_up_no_lock_of_the_process(tmp_path):
    """POSIX locks are a process's own: to close any descriptor of the file lets go of all it has on it."""
    path = tmp_path / "tollgate.db"
    first = open_engine(path)
    with reading(first, "test", "hold") as connection:
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        second = open_engine(path)
        with reading(second, "test", "look") as other:
            other.exec_driver_sql("SELECT count(*) FROM sqlite_master")
        second.dispose()
        # Only who is alone with the file may take it out of WAL mode.
        tried = subprocess.run([sys.executable, "-c", SWITCH, path], capture_output=True, text=True, check=False)
        assert "database is locked" in tried.stderr
    first.dispose()
    tried = subprocess.run([sys.executable, "-c", SWITCH, path], capture_output=True, text=True, check=True)
    assert tried.stdout == "delete\n"


def test_a_file_that_is_there_stays_as_it_is(tmp_path):
    path = tmp_path / "data" / "tollgate.db"
    open_engine(path).dispose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE kept (x)")
    connection.close()
    path.chmod(0o640)
    engine = open_engine(path)
    with reading(engine, "test", "look") as found:
        assert found.exec_driver_sql("SELECT count(*) FROM kept").scalar() == 0
    engine.dispose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
