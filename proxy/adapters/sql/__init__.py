"""Keys, teams and the ledger in SQLite or Postgres, through SQLAlchemy Core."""
