"""What Alembic runs: its environment and the revisions."""
