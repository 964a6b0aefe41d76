"""Tells systemd how far we are, where it has asked to be told (`Type=notify`).

The protocol is one datagram for each word, to the socket that NOTIFY_SOCKET names (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

__all__ = ["READY", "STOPPING", "tell_systemd"]

READY = "READY=1"
STOPPING = "STOPPING=1"


def tell_systemd(word: str) -> None:
    """Send one word; without systemd, or where it does not listen, nothing happens."""
    place = os.environ.get("NOTIFY_SOCKET")  # noqa: TID251 - of systemd's own, no setting of ours
    if not place:
        return
    # A name that begins with @ is one that no file has.
    address = f"\0{place[1:]}" if place.startswith("@") else place
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as telling:
        telling.sendto(word.encode(), address)
