"""The cache's master key where nobody gave one: made once, in the data directory."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path

from proxy.adapters.cache_keys import KEY_BYTES, MasterKeys, MasterKeysInvalid, read_master_keys
from proxy.adapters.secrets import SecretsInvalid, create_once

__all__ = ["CACHE_KEY_FILE", "load_or_create_cache_keys"]

CACHE_KEY_FILE = "cache.key"


def load_or_create_cache_keys(data_dir: Path) -> MasterKeys:
    """The master keys in the data directory, made when it has none; every process gets the same ones.

    Whoever loses the file loses what is in the cache, and nothing else. Raises `SecretsInvalid` and `OSError`.
    """
    path = data_dir / CACHE_KEY_FILE
    if not path.exists():
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_once(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
    try:
        return read_master_keys(path.read_text("ascii"))
    except (MasterKeysInvalid, UnicodeDecodeError):
        raise SecretsInvalid(f"{path} is not a file of master keys of the cache") from None
