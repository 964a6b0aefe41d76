"""Settings: typed, frozen, documented, refused when unknown."""

from proxy.settings.duration import parse_duration_ms
from proxy.settings.layers import load
from proxy.settings.outgoing import OutgoingSettings
from proxy.settings.packages import INSTALL_SERVER, missing_for_cache
from proxy.settings.problem import Problem, SettingsError
from proxy.settings.schema import Settings
from proxy.settings.secret import Secret
from proxy.settings.sections import (
    DEFAULT_UPSTREAM_URL,
    BudgetSettings,
    CacheSettings,
    HeaderSettings,
    HitsCount,
    LedgerSettings,
    LedgerSync,
    LimitSettings,
    LogFormat,
    LogSettings,
    ModelSettings,
    OnDisconnect,
    PhaseSettings,
    PriceSettings,
    QueueSettings,
    ServerSettings,
    StreamSettings,
    UnknownModels,
    UpstreamSettings,
    WhenRedisIsAway,
)
from proxy.settings.upstreams import NamedUpstreamSettings, UpstreamKind

__all__ = [
    "DEFAULT_UPSTREAM_URL",
    "INSTALL_SERVER",
    "BudgetSettings",
    "CacheSettings",
    "HeaderSettings",
    "HitsCount",
    "LedgerSettings",
    "LedgerSync",
    "LimitSettings",
    "LogFormat",
    "LogSettings",
    "ModelSettings",
    "NamedUpstreamSettings",
    "OnDisconnect",
    "OutgoingSettings",
    "PhaseSettings",
    "PriceSettings",
    "Problem",
    "QueueSettings",
    "Secret",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StreamSettings",
    "UnknownModels",
    "UpstreamKind",
    "UpstreamSettings",
    "WhenRedisIsAway",
    "load",
    "missing_for_cache",
    "parse_duration_ms",
]
