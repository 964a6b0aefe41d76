"""What the steps work with: the ports, and the settings that decide for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from proxy.core.caps import BudgetReached
from proxy.core.errors import TollgateError
from proxy.core.pricing import PriceBook, Unpriced
from proxy.core.retry import RetryPolicy
from proxy.core.tiers import Tier
from proxy.pipeline.budgets_spent import BudgetsSpent
from proxy.pipeline.catalogue import Catalogue
from proxy.pipeline.flights import Flights
from proxy.pipeline.principals import Principals
from proxy.pipeline.recent import Recent
from proxy.pipeline.shutdown import Shutdown
from proxy.pipeline.team_usage import TeamUsage
from proxy.pipeline.turns import Turns
from proxy.pipeline.upstreams import Upstreams
from proxy.ports import Cache, Clock, Holding, Ledger, Limiter, Spawn, Telemetry, Tokenizer

__all__ = ["Policy", "Services"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's decisions that the steps ask for."""

    tiers: Mapping[str, Tier]
    default_tier: str
    """What a team whose tier is no longer configured is held to."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    default_output_reservation_tokens: int = 1_024
    """Reserved for each choice of a request that names no maximum."""
    hits_cost_requests: int = 1
    cache_enabled: bool = True
    cache_ttl_ms: int = 86_400_000
    cache_entry_max_bytes: int = 1_048_576
    cache_fill_wait_ms: int = 30_000
    """How long an answer that another process is fetching is waited for."""
    allow_unknown_models: bool = False
    extra_models: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of models: alias -> the model that is asked, limited, priced and accounted for."""
    max_json_depth: int = 64
    max_upload_bytes: int = 512 * 1024 * 1024
    """Largest body of what is not held in memory: forms, and what is passed on."""
    headers_left_out: frozenset[str] = frozenset()
    """Headers of our own that no answer has, by their names in lower case."""
    ask_for_stream_usage: bool = True
    """Whether upstream is asked for the usage of a stream where the client did not."""
    unpriced: Unpriced = Unpriced.REFUSE
    """What becomes of a request for a model without a price where there is a budget."""
    max_draining: int = 0
    """Calls that are read to their end at once though their clients have left; 0: upstream is stopped when one does."""
    keep_alive_seconds: float = 0.0
    """Silence of a stream after which its client is sent a comment; 0: none is."""


@dataclass(frozen=True, slots=True)
class Services:
    """One worker's equipment; made in `app.py`, lives as long as the worker."""

    policy: Policy
    clock: Clock
    principals: Principals
    prices: PriceBook
    limiter: Limiter
    cache: Cache
    flights: Flights
    ledger: Ledger
    upstreams: Upstreams
    telemetry: Telemetry
    catalogue: Catalogue
    spawn: Spawn
    status_of: Callable[[TollgateError], int]
    """HTTP status a client is given for an error, for the ledger to keep."""
    tokenizer: Tokenizer | None = None
    """Counts what upstream gave no usage for; None: that is estimated by characters."""
    budgets_spent: BudgetsSpent | None = None
    """What is spent of budgets, for teams to see; None: they are told that it was not asked."""
    budget_reached: Callable[[BudgetReached], None] = lambda _: None
    """Is told of each warning of a budget that is reached; does not wait, and does not raise."""
    team_usage: TeamUsage | None = None
    """What teams are shown of their own usage; None: nothing."""
    hold: Callable[[], Holding] | None = None
    """Makes a place for a form; None: none is taken."""
    turns: Turns | None = None
    """Where requests wait for limits to have room; None: none does."""
    recent: Recent = field(default_factory=Recent)
    """Requests understood of late."""
    shutdown: Shutdown = field(default_factory=Shutdown)
