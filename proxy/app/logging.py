"""The log of the process itself, on standard error; requests have a log of their own."""

from __future__ import annotations

import logging
import sys

__all__ = ["log_to_stderr"]


def log_to_stderr(who: str = "tollgate") -> None:
    """Write what the process has to say about itself, each line with the name of who says it."""
    form = f"%(asctime)s %(levelname)s {who}: %(message)s"
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=form)
    # Its own steps are of no interest beside "the schema is up to date".
    logging.getLogger("alembic").setLevel(logging.WARNING)
