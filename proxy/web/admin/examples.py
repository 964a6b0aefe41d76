"""Things of each kind, for the description of the API to show; made as the real ones are."""

from __future__ import annotations

from datetime import UTC, datetime

from proxy.core.audit import AuditEntry
from proxy.core.books import Findings, SpoolState
from proxy.core.cache_store import CacheServer, CacheStore
from proxy.core.price import Price, Rates, ServiceTier
from proxy.core.principal import KeyRecord, Team
from proxy.core.registry import Axis, IssuedKey, PepperRecord, UsageRow
from proxy.core.tiers import DEFAULT_TIERS, Limits
from proxy.core.usage import Usage
from proxy.core.views.audit import audit_view
from proxy.core.views.cache import store_view
from proxy.core.views.keys import issued_view, key_view, pepper_view
from proxy.core.views.ledger import findings_view
from proxy.core.views.prices import Listed, PricesView, ShippedView, price_row
from proxy.core.views.teams import team_view, tier_view
from proxy.core.views.usage import cache_usage_view, usage_view

__all__ = ["AUDIT", "CACHE_STORE", "CACHE_USAGE", "FINDINGS", "ISSUED_KEY", "KEY", "PEPPER", "PRICES", "TEAM", "TIER",
           "USAGE", "USAGE_CSV"]  # fmt: skip

_AT_MS = int(datetime(2026, 11, 21, 9, tzinfo=UTC).timestamp()) * 1_000
_DAY_MS = 86_400_000
_TEAM = Team("growth", "payg", _AT_MS, created_at_ms=_AT_MS, max_parallel=8, model_limits={"gpt-5": Limits(10, 20_000)})
_KEY = KeyRecord("0a1B2c3D4e5F", "growth", "ci", _AT_MS, _AT_MS + 90 * _DAY_MS, None, None, (), created_by="admin-api")
_ROW = UsageRow(("growth", "gpt-5-mini"), 1_204, 211, 3, Usage(90_412, 40_127), 103_000_000_000,
                18_200_000_000, 15_102, 7_210)  # fmt: skip
_PRICE = Price(
    price_id="gpt-5-mini@2026-11-01",
    model="gpt-5-mini",
    mode="chat",
    valid_from_ms=_AT_MS,
    max_input_tokens=272_000,
    max_output_tokens=128_000,
    rates=dict.fromkeys(ServiceTier, Rates(250_000, 25_000, 250_000, 2_000_000, 250_000, 2_000_000)),
)

TEAM = team_view(_TEAM, DEFAULT_TIERS, _AT_MS)
TIER = tier_view(DEFAULT_TIERS["payg"], "free")
KEY = key_view(_KEY, _AT_MS)
ISSUED_KEY = issued_view(IssuedKey("sk-tg_0a1B2c3D4e5F_...", _KEY), _AT_MS)
PEPPER = pepper_view(PepperRecord(1, _AT_MS, None, 12, current=True, here=True))
USAGE = usage_view((Axis.TEAM, Axis.MODEL), _ROW)
USAGE_CSV = "team,requests\ngrowth,1204\n"
CACHE_USAGE = cache_usage_view(_ROW)
CACHE_STORE = store_view(
    CacheStore(
        in_redis=True,
        max_bytes=268_435_456,
        servers=(CacheServer("127.0.0.1:6379", 1_048_576, 268_435_456, "allkeys-lru", 0),),
    )
)
FINDINGS = findings_view(Findings(1_204, 103_000_000_000, (), (), (), SpoolState(1, 0, 0, 0, ())))
AUDIT = audit_view(AuditEntry(_AT_MS, "admin-api", "key.revoke", "0a1B2c3D4e5F", "growth", {}))
PRICES = PricesView(
    shipped=ShippedView(as_of="2026-11-01", age_days=20, source="https://openai.com/api/pricing"),
    file="/var/lib/tollgate/prices.json",
    prices=[price_row(Listed(_PRICE, holds=True, shipped=False))],
)
