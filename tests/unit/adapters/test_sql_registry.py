import json

import pytest
from msgspec.structs import replace
from sqlalchemy import select

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import api_keys, audit_log, config_revision, key_secrets
from proxy.core.keys import parse, secret_behind
from proxy.core.principal import HEAVIEST_WEIGHT, LONGEST_MAX_WAIT_MS, CacheMode
from proxy.core.registry import BadName, BadValue, KeyUnknown, TeamExists, TeamUnknown
from proxy.core.tiers import LARGEST_LIMIT, Limits


@pytest.fixture
def peppers(tmp_path):
    return load_or_create_pepper(tmp_path / "secrets")


@pytest.fixture
def registry(engine, clock, peppers):
    return SqlRegistry(engine, clock, peppers, actor="ada")


def revision_of(engine):
    with engine.connect() as connection:
        return connection.execute(select(config_revision.c.revision)).scalar_one()


def audit_of(engine):
    with engine.connect() as connection:
        rows = connection.execute(select(audit_log).order_by(audit_log.c.id)).mappings()
        return [(row["actor"], row["action"], row["subject"], json.loads(row["details"])) for row in rows]


def test_a_team_is_as_it_was_made(registry, clock):
    team = registry.add_team("growth", "free")
    assert (team.name, team.tier, team.tier_since_ms, team.created_at_ms) == ("growth", "free", clock.ms, clock.ms)
    assert (team.limits, team.models, team.allow_stateful) == (None, None, False)
    assert team.cache_mode is CacheMode.DETERMINISTIC
    assert len(team.cache_secret) == 32
    other = registry.add_team(
        "r-and.d_2",
        "payg",
        tokens_per_minute=5_000,
        cache_mode=CacheMode.OFF,
        models=frozenset({"gpt-4o", "gpt-4o-mini"}),
        allow_stateful=True,
    )
    assert other.limits == Limits(tokens_per_minute=5_000)
    assert (other.models, other.cache_mode) == (frozenset({"gpt-4o", "gpt-4o-mini"}), CacheMode.OFF)
    assert other.cache_secret != team.cache_secret
    assert registry.list_teams() == [team, other]
    assert registry.get_team("growth") == team


def test_only_the_fields_given_change(registry, clock):
    before = registry.add_team("growth", "free", requests_per_minute=10, tokens_per_minute=20, models=frozenset({"m"}))
    clock.ms += 1_000
    after = registry.set_team("growth", tokens_per_minute=30)
    assert after.limits == Limits(requests_per_minute=10, tokens_per_minute=30)
    assert after.tier_since_ms == before.tier_since_ms
    cleared = registry.set_team("growth", requests_per_minute=None, tokens_per_minute=None, models=None)
    assert (cleared.limits, cleared.models) == (None, None)
    none_at_all = registry.set_team("growth", models=frozenset())
    assert none_at_all.models == frozenset()


def test_another_tier_counts_from_now_and_the_same_one_goes_on(registry, clock):
    since = registry.add_team("growth", "free").tier_since_ms
    clock.ms += 5_000
    assert registry.set_team("growth", tier="free").tier_since_ms == since
    assert registry.set_team("growth", tier="payg").tier_since_ms == clock.ms


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a b", "a/b", "ä", "a\n", "a" * 64])
def test_a_bad_name_is_refused(registry, name):
    with pytest.raises(BadName):
        registry.add_team(name, "free")
    assert registry.list_teams() == []


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "team-1.x_y"])
def test_a_good_name_is_taken(registry, name):
    assert registry.add_team(name, "free").name == name


def test_a_name_is_taken_once(registry, engine):
    team = registry.add_team("growth", "free")
    with pytest.raises(TeamExists):
        registry.add_team("growth", "payg")
    assert registry.list_teams() == [team]
    assert revision_of(engine) == 1


def test_what_is_not_there_is_said_so(registry):
    for call in (registry.get_team, registry.set_team, registry.issue_key, registry.list_keys):
        with pytest.raises(TeamUnknown):
            call("nobody")
    for call in (registry.revoke_key, registry.rotate_key, registry.set_key):
        for kid in ("000000000000", "", "nonsense", "sk-tg_"):
            with pytest.raises(KeyUnknown):
                call(kid)


def test_a_trial_of_another_tier_counts_from_its_beginning(registry, clock):
    assert registry.add_team("plain", "free").shadow_tier is None
    team = registry.add_team("growth", "free", shadow_tier="payg", max_parallel=3)
    assert (team.shadow_tier, team.shadow_since_ms, team.max_parallel) == ("payg", clock.ms, 3)
    began_ms = clock.ms
    clock.ms += 1_000
    same = registry.set_team("growth", shadow_tier="payg", tier="unlimited")
    assert (same.shadow_since_ms, same.tier_since_ms) == (began_ms, clock.ms)
    other = registry.set_team("growth", shadow_tier="free")
    assert (other.shadow_tier, other.shadow_since_ms) == ("free", clock.ms)
    ended = registry.set_team("growth", shadow_tier=None, max_parallel=None)
    assert (ended.shadow_tier, ended.shadow_since_ms, ended.max_parallel) == (None, 0, None)
    with pytest.raises(BadValue, match="shadow_tier"):
        registry.set_team("growth", shadow_tier="")


def test_a_model_is_limited_for_a_team_until_it_is_not(registry, engine):
    registry.add_team("research", "free")
    registry.add_team("growth", "free")
    registry.set_model_limit("growth", "gpt-4o", 10, 5_000)
    team = registry.set_model_limit("growth", "gpt-4o-mini", tokens_per_minute=70)
    assert team.model_limits == {"gpt-4o": Limits(10, 5_000), "gpt-4o-mini": Limits(None, 70)}
    assert registry.get_team("growth") == team
    assert registry.list_teams() == [team, registry.get_team("research")]
    assert registry.get_team("research").model_limits == {}
    replaced = registry.set_model_limit("growth", "gpt-4o", requests_per_minute=11)
    assert replaced.model_limits["gpt-4o"] == Limits(11)
    assert registry.set_model_limit("growth", "gpt-4o").model_limits == {"gpt-4o-mini": Limits(None, 70)}
    assert audit_of(engine)[-1][1:] == (
        "team.limit", "growth", {"model": "gpt-4o", "requests_per_minute": None, "tokens_per_minute": None}
    )  # fmt: skip
    assert revision_of(engine) == 6


def test_a_model_limit_that_changes_nothing_is_no_change(registry, engine):
    registry.add_team("growth", "free")
    registry.set_model_limit("growth", "gpt-4o", 10)
    before = (revision_of(engine), audit_of(engine))
    registry.set_model_limit("growth", "gpt-4o", 10)
    registry.set_model_limit("growth", "never-limited")
    assert (revision_of(engine), audit_of(engine)) == before


@pytest.mark.parametrize("model", ["", "m" * 257, "two\nlines", "\x1b[31m"])
def test_a_model_has_a_name(registry, model):
    registry.add_team("growth", "free")
    with pytest.raises(BadValue, match="model"):
        registry.set_model_limit("growth", model, 1)
    with pytest.raises(TeamUnknown):
        registry.set_model_limit("nobody", "gpt-4o", 1)


def test_a_key_has_limits_of_its_own(registry, clock):
    registry.add_team("growth", "free")
    plain = registry.issue_key("growth").record
    assert (plain.limits, plain.max_parallel) == (None, None)
    record = registry.issue_key("growth", requests_per_minute=5, tokens_per_minute=600, max_parallel=2).record
    assert (record.limits, record.max_parallel) == (Limits(5, 600), 2)
    assert {each.kid: each for each in registry.list_keys()} == {plain.kid: plain, record.kid: record}
    rotated = registry.rotate_key(record.kid).record
    assert (rotated.limits, rotated.max_parallel) == (Limits(5, 600), 2)


def test_only_the_given_fields_of_a_key_change(registry, engine):
    registry.add_team("growth", "free")
    issued = registry.issue_key("growth", "ci", requests_per_minute=5, max_parallel=2)
    kid = issued.record.kid
    changed = registry.set_key(f"sk-tg_{kid}", tokens_per_minute=70, label="nightly", models=frozenset({"gpt-4o"}))
    assert (changed.limits, changed.max_parallel) == (Limits(5, 70), 2)
    assert (changed.label, changed.models, changed.team) == ("nightly", frozenset({"gpt-4o"}), "growth")
    assert changed.secrets == issued.record.secrets
    told = {"tokens_per_minute": 70, "label": "nightly", "models": ["gpt-4o"]}
    assert audit_of(engine)[-1] == ("ada", "key.set", kid, told)
    cleared = registry.set_key(kid, requests_per_minute=None, tokens_per_minute=None, max_parallel=None, models=None)
    assert (cleared.limits, cleared.max_parallel, cleared.models) == (None, None, None)
    revision = revision_of(engine)
    assert registry.set_key(kid) == cleared
    assert revision_of(engine) == revision == 4
    with pytest.raises(BadValue, match="label"):
        registry.set_key(kid, label="two\nlines")
    with pytest.raises(KeyUnknown):
        registry.set_key("000000000000", max_parallel=1)


def test_a_team_weighs_one_until_it_is_given_another_weight(registry, engine):
    assert registry.add_team("plain", "free").weight == 1
    assert registry.add_team("growth", "free", weight=3).weight == 3
    assert audit_of(engine)[-1][3]["weight"] == 3
    changed = registry.set_team("growth", weight=HEAVIEST_WEIGHT)
    assert changed.weight == HEAVIEST_WEIGHT == 100
    assert audit_of(engine)[-1] == ("ada", "team.set", "growth", {"weight": 100})
    assert registry.set_team("growth", tier="payg").weight == 100
    assert [team.weight for team in registry.list_teams()] == [100, 1]
    for weight in (0, -1, 1.5, "9", HEAVIEST_WEIGHT + 1, None):
        with pytest.raises(BadValue, match="weight: must be a whole number from 1 to 100"):
            registry.set_team("growth", weight=weight)
        with pytest.raises(BadValue, match="weight"):
            registry.add_team("other", "free", weight=weight)
    assert [team.weight for team in registry.list_teams()] == [100, 1]


def test_a_key_waits_if_it_is_said_to(registry, engine):
    registry.add_team("growth", "free")
    plain = registry.issue_key("growth").record
    assert plain.max_wait_ms is None
    record = registry.issue_key("growth", max_wait_ms=20_000).record
    assert audit_of(engine)[-1][3]["max_wait_ms"] == 20_000
    assert registry.get_key(record.kid) == record
    assert registry.rotate_key(record.kid).record.max_wait_ms == record.max_wait_ms == 20_000
    assert registry.set_key(record.kid, label="nightly").max_wait_ms == 20_000
    assert registry.set_key(plain.kid, max_wait_ms=LONGEST_MAX_WAIT_MS).max_wait_ms == LONGEST_MAX_WAIT_MS == 3_600_000
    assert audit_of(engine)[-1] == ("ada", "key.set", plain.kid, {"max_wait_ms": 3_600_000})
    assert registry.set_key(plain.kid, max_wait_ms=None).max_wait_ms is None
    (taken,) = registry.import_keys("growth", ["a-key-from-elsewhere-0123456789"], max_wait_ms=7)
    assert registry.get_key(taken.kid).max_wait_ms == 7
    keys = registry.list_keys()
    for wait_ms in (0, -1, 1.5, "9", LONGEST_MAX_WAIT_MS + 1):
        for call in (
            lambda **given: registry.issue_key("growth", **given),
            lambda **given: registry.set_key(plain.kid, **given),
            lambda **given: registry.import_keys("growth", ["another-key-from-elsewhere-4567"], **given),
        ):
            with pytest.raises(BadValue, match="max_wait_ms: must be a whole number from 1 to 3600000"):
                call(max_wait_ms=wait_ms)
    assert registry.list_keys() == keys


@pytest.mark.parametrize("number", [0, -1, 1.5, "9", LARGEST_LIMIT + 1])
def test_a_limit_is_a_whole_number_above_zero(registry, number):
    with pytest.raises(BadValue, match="requests_per_minute"):
        registry.add_team("growth", "free", requests_per_minute=number)
    team, kid = registry.add_team("growth", "free"), registry.issue_key("growth").record.kid
    for limit in ("requests_per_minute", "tokens_per_minute", "max_parallel"):
        for call in (
            lambda **given: registry.issue_key("growth", **given),
            lambda **given: registry.set_key(kid, **given),
            lambda **given: registry.set_team("growth", **given),
        ):
            with pytest.raises(BadValue, match=limit):
                call(**{limit: number})
    with pytest.raises(BadValue, match="tokens_per_minute"):
        registry.set_model_limit("growth", "gpt-4o", tokens_per_minute=number)
    assert registry.list_teams() == [team]
    assert len(registry.list_keys()) == 1


def test_an_issued_key_is_known_by_its_hash_alone(registry, engine, peppers, clock):
    registry.add_team("growth", "free")
    issued = registry.issue_key("growth", "ci", models=frozenset({"gpt-4o"}))
    record = issued.record
    assert parse(issued.key).kid == record.kid
    (secret,) = record.secrets
    assert secret_behind(peppers.latest().hashes(issued.key), [secret]) == secret
    assert (secret.serial, secret.created_at_ms, secret.ends_at_ms, secret.imported) == (1, clock.ms, None, False)
    assert (record.created_by, record.last_used_at_ms) == ("ada", None)
    assert registry.list_keys() == registry.list_keys("growth") == [record]
    assert issued.key[19:] not in repr(issued)
    with engine.connect() as connection:
        kept = repr(connection.execute(select(api_keys)).all()) + repr(connection.execute(select(key_secrets)).all())
    kept += repr(audit_of(engine))
    assert issued.key[19:] not in kept
    assert peppers.latest().secrets[1].hex() not in kept


def test_a_key_expires_in_the_future_only(registry, clock):
    registry.add_team("growth", "free")
    last_ms = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z, the last that calendars show
    for when, message in (
        (clock.ms, "in the future"),
        (clock.ms - 1, "in the future"),
        (last_ms + 1, "too far"),
        (2**60, "too far"),
    ):
        with pytest.raises(BadValue, match=f"expires_at_ms.*{message}"):
            registry.issue_key("growth", expires_at_ms=when)
    assert registry.list_keys() == []
    assert registry.issue_key("growth", expires_at_ms=last_ms).record.expires_at_ms == last_ms
    assert registry.issue_key("growth", expires_at_ms=clock.ms + 1).record.live_at(clock.ms)


def test_a_label_stays_on_one_line(registry):
    registry.add_team("growth", "free")
    for label in ("two\nlines", "x" * 201, "\x1b[31m"):
        with pytest.raises(BadValue, match="label"):
            registry.issue_key("growth", label)


@pytest.mark.parametrize("named", ["kid", "beginning", "whole"])
def test_revoking_ends_a_key_once(registry, engine, clock, named):
    registry.add_team("growth", "free")
    issued = registry.issue_key("growth")
    kid = issued.record.kid
    text = {"kid": kid, "beginning": f"sk-tg_{kid}", "whole": issued.key}[named]
    clock.ms += 10
    revoked = registry.revoke_key(text)
    assert revoked.revoked_at_ms == clock.ms
    assert not revoked.live_at(clock.ms)
    revision = revision_of(engine)
    clock.ms += 10
    assert registry.revoke_key(text) == revoked
    assert registry.list_keys() == [revoked]
    assert revision_of(engine) == revision
    assert issued.key[19:] not in repr(audit_of(engine))


def test_an_unknown_key_is_named_by_its_id_alone(registry):
    registry.add_team("growth", "free")
    key = registry.issue_key("growth").key
    absent = key[:6] + "0" * 12 + key[18:]
    with pytest.raises(KeyUnknown) as raised:
        registry.revoke_key(absent)
    assert key[19:] not in f"{raised.value} {raised.value!r}"


def test_rotation_gives_a_key_a_second_secret_and_then_ends_the_first(registry, clock):
    registry.add_team("growth", "free")
    made = registry.issue_key("growth", "ci", models=frozenset({"gpt-4o"}), requests_per_minute=7)
    clock.ms += 1_000
    rotated = registry.rotate_key(made.record.kid, overlap_ms=60_000)
    assert rotated.key != made.key
    assert parse(rotated.key).kid == made.record.kid
    assert registry.list_keys() == [rotated.record]
    old, new = rotated.record.secrets
    assert replace(rotated.record, secrets=made.record.secrets) == made.record
    assert (old.serial, new.serial, new.ends_at_ms, new.created_at_ms) == (1, 2, None, clock.ms)
    assert old.live_at(clock.ms + 59_999)
    assert not old.live_at(clock.ms + 60_000)
    assert replace(old, ends_at_ms=None) == made.record.secrets[0]


def test_rotation_at_once_ends_the_old_secret_now(registry, clock):
    registry.add_team("growth", "free")
    kid = registry.issue_key("growth").record.kid
    assert [secret.live_at(clock.ms) for secret in registry.rotate_key(kid).record.secrets] == [False, True]


def test_rotation_during_an_overlap_prolongs_nothing(registry, clock):
    registry.add_team("growth", "free")
    kid = registry.issue_key("growth").record.kid
    first_end_ms = clock.ms + 1_000
    registry.rotate_key(kid, overlap_ms=1_000)
    second_end_ms = clock.ms + 5_000
    record = registry.rotate_key(kid, overlap_ms=5_000).record
    assert [secret.ends_at_ms for secret in record.secrets] == [first_end_ms, second_end_ms, None]
    clock.ms = first_end_ms
    # What has ended is forgotten; what goes on ends sooner when it is said so.
    record = registry.rotate_key(kid, overlap_ms=10).record
    assert [(secret.serial, secret.ends_at_ms) for secret in record.secrets] == [
        (2, clock.ms + 10), (3, clock.ms + 10), (4, None)
    ]  # fmt: skip


def test_a_key_has_a_bounded_number_of_secrets(registry):
    registry.add_team("growth", "free")
    kid = registry.issue_key("growth").record.kid
    for _ in range(3):
        registry.rotate_key(kid, overlap_ms=1_000)
    with pytest.raises(BadValue, match="4 secrets"):
        registry.rotate_key(kid, overlap_ms=1_000)
    assert len(registry.list_keys()[0].secrets) == 4
    assert registry.rotate_key(kid).record.secrets[-1].serial == 5


def test_what_has_ended_is_not_rotated(registry, clock):
    registry.add_team("growth", "free")
    revoked = registry.issue_key("growth").record.kid
    registry.revoke_key(revoked)
    expired = registry.issue_key("growth", expires_at_ms=clock.ms + 1).record.kid
    clock.ms += 1
    for kid in (revoked, expired):
        with pytest.raises(BadValue, match="revoked or expired"):
            registry.rotate_key(kid)
    with pytest.raises(BadValue, match="overlap_ms"):
        registry.rotate_key(revoked, overlap_ms=-1)


def test_rotation_never_prolongs_a_key(registry, clock):
    registry.add_team("growth", "free")
    old = registry.issue_key("growth", expires_at_ms=clock.ms + 10).record
    rotated = registry.rotate_key(old.kid, overlap_ms=60_000).record
    assert rotated.expires_at_ms == clock.ms + 10


def test_the_longest_overlap_ends_with_the_calendar(registry):
    registry.add_team("growth", "free")
    old = registry.issue_key("growth").record
    rotated = registry.rotate_key(old.kid, overlap_ms=2**60).record
    assert [secret.ends_at_ms for secret in rotated.secrets] == [253_402_300_799_999, None]


def test_every_change_is_seen_and_audited(registry, engine):
    registry.add_team("growth", "free")
    registry.set_team("growth", tier="payg")
    kid = registry.issue_key("growth", "ci").record.kid
    registry.revoke_key(kid)
    assert revision_of(engine) == 4
    assert [entry[:3] for entry in audit_of(engine)] == [
        ("ada", "team.add", "growth"),
        ("ada", "team.set", "growth"),
        ("ada", "key.issue", kid),
        ("ada", "key.revoke", kid),
    ]
    assert audit_of(engine)[0][3]["tier"] == "free"
    assert "cache_secret" not in audit_of(engine)[0][3]
    registry.set_team("growth")
    registry.list_teams()
    assert revision_of(engine) == 4


def test_a_change_that_cannot_be_audited_does_not_happen(registry, engine):
    team = registry.add_team("growth", "free")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE audit_log")
    with pytest.raises(Exception, match="registry"):
        registry.set_team("growth", tier="payg")
    assert registry.get_team("growth") == team
    assert revision_of(engine) == 1
