"""The scripts of the limiter."""

from __future__ import annotations

from dataclasses import dataclass, fields

from proxy.adapters.redis.bucket_state import script_text
from proxy.adapters.redis.scripts import Script

__all__ = ["AccountScripts", "LimiterScripts"]


@dataclass(frozen=True, slots=True)
class AccountScripts:
    """What is done to one account by itself."""

    open: Script
    resync: Script
    add: Script


@dataclass(frozen=True, slots=True)
class LimiterScripts:
    """One script for each verb; the capped ones ask and settle budgets as well, which the others need not pay for."""

    reserve: Script
    settle: Script
    charge: Script
    peek: Script
    renew: Script
    reserve_capped: Script
    settle_capped: Script
    account_open: Script
    account_resync: Script
    account_add: Script

    @classmethod
    def packaged(cls) -> LimiterScripts:
        """Those of this release."""
        return cls(*(Script(verb.name, script_text(verb.name)) for verb in fields(cls)))

    @property
    def of_accounts(self) -> AccountScripts:
        """Those that concern one account."""
        return AccountScripts(self.account_open, self.account_resync, self.account_add)
