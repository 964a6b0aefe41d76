"""Writes a backup of a data directory to standard output, as a tar file, beside a running server.

    python deploy/backup.py /var/lib/tollgate > tollgate.tar
    docker compose exec -T tollgate python - /var/lib/tollgate < deploy/backup.py > tollgate.tar

In it are the spool, the SQLite file where there is one, and what Tollgate has made for itself: peppers, the token of
the admin API, the master key of the cache, and prices. It holds secrets: keep it as such.

The spool comes first. What the database takes over meanwhile is then in both, and counted once when it is restored; the
other way round it could be in neither. For the same reason Postgres is to be dumped after this has ended. Needs Python
alone.
"""  # noqa: INP001 - a script

from __future__ import annotations

import os
import sqlite3
import stat
import sys
import tarfile
import tempfile
from contextlib import closing, suppress
from pathlib import Path

SPOOL = "spool"
DATABASE = "tollgate.sqlite3"
KEPT = ("peppers.json", "admin_token", "cache.key", "prices.json")


def write_backup(data_dir: Path, tar: tarfile.TarFile) -> None:
    """Write everything into the tar file. Raises `OSError`, `sqlite3.Error`."""
    for path in sorted((data_dir / SPOOL).rglob("*")):
        # A segment that is gone by now has been taken over by the database, which comes after it.
        with suppress(FileNotFoundError):
            _add(tar, path, data_dir)
    if (data_dir / DATABASE).exists():
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".backup-") as place:
            copy = Path(place, DATABASE)
            _copy_database(data_dir / DATABASE, copy)
            _add(tar, copy, copy.parent)
    for name in KEPT:
        with suppress(FileNotFoundError):
            _add(tar, data_dir / name, data_dir)


def _copy_database(source: Path, target: Path) -> None:
    """Copy it as it is at one instant; those who write to it need not wait."""
    # Not read-only: the last one to close a database tidies up behind it, and must be able to.
    with closing(sqlite3.connect(source, timeout=30)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        # Else it would come with a log of its own beside it.
        copy.execute("PRAGMA journal_mode = DELETE")
        (found,) = copy.execute("PRAGMA quick_check").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"{source} is damaged: {found}")


def _add(tar: tarfile.TarFile, path: Path, root: Path) -> None:
    """Add a file as long as it is now: others append to it."""
    if path.is_dir():
        tar.add(path, str(path.relative_to(root)), recursive=False)
        return
    with path.open("rb") as file:
        entry = tar.gettarinfo(arcname=str(path.relative_to(root)), fileobj=file)
        tar.addfile(entry, file)


def main() -> int:
    """Write the backup of the directory that is named."""
    if len(sys.argv) != 2 or os.isatty(1):
        sys.stderr.write("usage: python backup.py DATA_DIR > FILE.tar\n")
        return 2
    data_dir = Path(sys.argv[1])
    if not data_dir.is_dir():
        sys.stderr.write(f"{data_dir} is no directory\n")
        return 1
    os.umask(0o077)
    if stat.S_ISREG(os.fstat(1).st_mode):
        with suppress(PermissionError):
            os.fchmod(1, 0o600)
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        write_backup(data_dir, tar)
    return 0


if __name__ == "__main__":
    sys.exit(main())
