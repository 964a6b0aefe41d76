"""The laws can fail: each mutation of the limiter's text breaks the law that is there for it, on every engine.

A mutation is made in the text as it is released: the model's is executed as a module of its own and drives the embedded
limiter, the scripts' is loaded into a real server. Histories are few and always the same.
"""

import importlib.util
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
from hypothesis import HealthCheck, Phase, settings

import proxy
from tests.support.limiter_build import VERBS, on_hand_clock, scripts_with
from tests.support.limiter_engines import HandClock, memory_engine, redis_engine
from tests.support.limiter_laws import LAWS
from tests.support.redis_server import server_binary
from tests.support.tollgate_process import ROOT

HISTORIES = 200
BUCKET, EMBEDDED, SCRIPTS = "core/bucket.py", "adapters/memory/limiter.py", "scripts"


@dataclass(frozen=True)
class Mutation:
    """Replacements in one text, or in every script that holds the pattern; and the law they break."""

    name: str
    engine: str
    law: str
    edits: tuple[tuple[str, str], ...]
    properties: tuple[str, ...] = ()
    """Tests of the model's own that fail with it, in `test_bucket_properties.py`."""

    def __str__(self):
        return f"{self.name}, {self.engine}"

    def change(self, text, edits=None):
        for pattern, replacement in self.edits if edits is None else edits:
            found = text.count(pattern)
            assert found == 1, f"mutation {self}: its pattern is there {found} times, not once:\n{pattern}"
            text = text.replace(pattern, replacement)
        return text

    def change_script(self, verb, text):
        """`change` for `scripts_with`: the edits that concern this verb."""
        return self.change(text, [edit for edit in self.edits if edit[0] in text])

    def assert_in_some_script(self):
        texts = [script_text(verb) for verb in VERBS]
        for pattern, _ in self.edits:
            assert any(pattern in text for text in texts), f"mutation {self}: in no script is\n{pattern}"


def script_text(verb):
    return getattr(scripts_with(on_hand_clock), verb).text


COUNTED_TWICE = "nothing_is_counted_twice"
REFUSAL = "a_refusal_changes_nothing_and_its_wait_is_exact"
SETTLING = "settling_never_adds_capacity"
STEP_BACK = "a_clock_that_steps_back_creates_nothing"
TIER = "the_stores_clock_switches_the_tier"
PLACES = "places_are_never_more_than_there_are_and_all_come_back"

WHILE_UPPER_BOUNDS = "test_the_level_is_never_below_the_truth_while_estimates_are_upper_bounds"
ONCE_SETTLED = "test_the_level_is_never_below_the_truth_once_all_have_settled"
EXACT = "test_a_refusal_changes_nothing_and_its_wait_is_exact"
OF_ITS_MILLISECOND = "test_the_limits_of_a_decision_are_those_of_its_millisecond"

ROOM_R = "room = handle.level_requests - (removed_r - handle.removed_requests) if same else 0"
ROOM_T = "room = handle.level_tokens - (removed_t - handle.removed_tokens) if same else 0"
DEBT = "return -min(-unused, max(0, _MOST_USED - used))"
SCRIPT_DEBT = "level[used] = level[used] + min(-unused, max(0, MOST_USED - level[used]))"

NEVER_ROOM = (
    ("if rate_r and units_r > capacity_r:", "if False:"),
    ("if rate_t and units_t > capacity_t:", "if False:"),
)

REFUSED_STATES = "level[0] if state is not None and level[0][1] < state[1] else None\n            for state, level in"
CHARGED_STATES = """_admit([level], units_r, units_t, scopes[0].schedule, now_ms, epoch)[1][0]
            if level[0][2] + units_r <= level[1][1] and level[0][4] + units_t <= level[1][3]
            else None
            for state, level in"""
SCRIPT_REFUSED_STATES = """  if held[i] and levels[i][AT] < level_of(held[i])[AT] then
    keep(KEYS[i], levels[i], resets(levels[i], schedules[i], phases[i]))
"""
SCRIPT_CHARGED_STATES = """  local level, schedule, phase = { unpack(levels[i], 1, 6) }, schedules[i], phases[i]
  if level[USED] + units_r <= schedule[phase + 1] and level[USED + 2] + units_t <= schedule[phase + 3] then
    take(level, USED, schedule[phase], units_r)
    take(level, USED + 2, schedule[phase + 2], units_t)
    keep(KEYS[i], level, resets(level, schedule, phase))
"""

PLAIN_REFUND = "plain refund instead of the V rule"
ONE_BY_ONE = "scopes charged one by one, before all are asked"
FORGIVEN = "what was used beyond the reservation is forgiven"
CLAMPED = "a debt ends at the capacity"
NO_EPOCH = "the epoch of a handle is ignored"
NEVER_ASKED = "nobody asks whether a cost can ever fit"
LATER_ASKED = "only the limits to come are asked whether a cost can ever fit"
ALWAYS_ADOPTED = "a clock a little behind is believed"
NEVER_ADOPTED = "a clock far behind is waited for"
CALLERS_CLOCK = "the tier is the one that held when the caller looked it up"
A_MS_LATE = "the tier switches a millisecond late"
PLACE_KEPT = "a place is not given back"

MUTATIONS = (
    Mutation(
        PLAIN_REFUND,
        BUCKET,
        COUNTED_TWICE,
        (
            (ROOM_R, "room = handle.level_requests if same else 0"),
            (ROOM_T, "room = handle.level_tokens if same else 0"),
        ),
        (ONCE_SETTLED,),
    ),
    Mutation(
        PLAIN_REFUND,
        SCRIPTS,
        COUNTED_TWICE,
        (
            (
                "local still_there = level_after - (level[removed] - handle[2 + which * 2])",
                "local still_there = level[used]",
            ),
        ),
    ),
    Mutation(ONE_BY_ONE, BUCKET, REFUSAL, ((REFUSED_STATES, CHARGED_STATES),), (EXACT,)),
    Mutation(ONE_BY_ONE, SCRIPTS, REFUSAL, ((SCRIPT_REFUSED_STATES, SCRIPT_CHARGED_STATES),)),
    Mutation(FORGIVEN, BUCKET, COUNTED_TWICE, ((DEBT, "return 0"),), (ONCE_SETTLED,)),
    Mutation(FORGIVEN, SCRIPTS, COUNTED_TWICE, ((SCRIPT_DEBT, "level[used] = level[used]"),)),
    Mutation(
        CLAMPED,
        BUCKET,
        COUNTED_TWICE,
        (
            (
                "used_t, removed_t = used_t - back, removed_t + max(0, back)",
                "used_t, removed_t = min(used_t - back, schedule.before.figures[3]), removed_t + max(0, back)",
            ),
        ),
        (ONCE_SETTLED,),
    ),
    Mutation(
        CLAMPED,
        SCRIPTS,
        COUNTED_TWICE,
        ((SCRIPT_DEBT, "level[used] = min(level[used] - unused, schedule[phase + which * 2 + 1])"),),
    ),
    Mutation(NO_EPOCH, BUCKET, SETTLING, (("same = own_epoch == handle.epoch", "same = True"),), (WHILE_UPPER_BOUNDS,)),
    Mutation(NO_EPOCH, BUCKET, COUNTED_TWICE, (("same = own_epoch == handle.epoch", "same = True"),)),
    Mutation(NO_EPOCH, SCRIPTS, SETTLING, ((" and level[EPOCH] == handle[1] then", " then"),)),
    Mutation(NO_EPOCH, SCRIPTS, COUNTED_TWICE, ((" and level[EPOCH] == handle[1] then", " then"),)),
    Mutation(
        NEVER_ASKED,
        BUCKET,
        REFUSAL,
        (
            *NEVER_ROOM,
            ("    if cost > capacity:\n        return _NEVER\n", "    cost = min(cost, capacity)\n"),
        ),
        (EXACT,),
    ),
    Mutation(
        NEVER_ASKED,
        SCRIPTS,
        REFUSAL,
        (
            ("if rate > 0 and (which == 0 and units_r or units_t) > capacity then", "if false then"),
            ("  if cost > capacity then\n    return NEVER\n  end\n", "  cost = min(cost, capacity)\n"),
        ),
    ),
    Mutation(
        LATER_ASKED,
        BUCKET,
        REFUSAL,
        NEVER_ROOM,
    ),
    Mutation(
        LATER_ASKED,
        SCRIPTS,
        REFUSAL,
        (("if rate > 0 and (which == 0 and units_r or units_t) > capacity then", "if false then"),),
    ),
    Mutation(ALWAYS_ADOPTED, BUCKET, STEP_BACK, (("if last_ms - now_ms < STEP_BACK_MS:", "if False:"),)),
    Mutation(ALWAYS_ADOPTED, SCRIPTS, STEP_BACK, (("if last_ms - at_ms < STEP_BACK_MS then", "if false then"),)),
    Mutation(NEVER_ADOPTED, BUCKET, STEP_BACK, (("if last_ms - now_ms < STEP_BACK_MS:", "if True:"),)),
    Mutation(NEVER_ADOPTED, SCRIPTS, STEP_BACK, (("if last_ms - at_ms < STEP_BACK_MS then", "if true then"),)),
    Mutation(
        CALLERS_CLOCK,
        BUCKET,
        TIER,
        (("        figures = schedule.after.figures\n", "        figures = schedule.before.figures\n"),),
        (OF_ITS_MILLISECOND,),
    ),
    Mutation(
        CALLERS_CLOCK, SCRIPTS, TIER, (("local phase = at_ms < switch_ms and BEFORE or AFTER", "local phase = BEFORE"),)
    ),
    Mutation(
        A_MS_LATE,
        BUCKET,
        TIER,
        (("if switch_ms is not None and switch_ms <= now_ms:", "if switch_ms is not None and switch_ms < now_ms:"),),
        (OF_ITS_MILLISECOND,),
    ),
    Mutation(
        A_MS_LATE, SCRIPTS, TIER, (("local phase = at_ms < switch_ms and", "local phase = at_ms <= switch_ms and"),)
    ),
    Mutation(PLACE_KEPT, EMBEDDED, PLACES, (("self._take_places(key, -scope.places_for(reservation.cost))", "pass"),)),
    Mutation(PLACE_KEPT, SCRIPTS, PLACES, (("redis.call('ZREM', KEYS[i], string.sub(ARGV[1], 33))", ""),)),
)
UNCHANGED = tuple(Mutation("as it is", engine, law, ()) for engine in (BUCKET, EMBEDDED, SCRIPTS) for law in LAWS)


def module_of(path, mutation):
    """The module at a path below the package, of the text that the mutation makes of it."""
    name = f"proxy.{path.removesuffix('.py').replace('/', '.')}"
    text = (Path(proxy.__path__[0]) / path).read_text("utf-8")
    module = ModuleType(name)
    exec(
        compile(mutation.change(text) if mutation.engine == path else text, f"{path} ({mutation})", "exec"),
        vars(module),
    )
    return module


@asynccontextmanager
async def engine_of(mutation, redis_servers):
    if mutation.engine == SCRIPTS:
        mutation.assert_in_some_script()
        server = redis_servers(server_binary())
        server.ask("FLUSHALL")
        async with redis_engine(server.url, HandClock(), mutation.change_script) as engine:
            yield engine
    else:
        embedded = module_of(EMBEDDED, mutation)
        embedded.bucket = module_of(BUCKET, mutation)
        yield memory_engine(HandClock(), embedded.MemoryLimiter)


async def counter_example(mutation, redis_servers):
    """Which history breaks the mutation's law first; None when all of them keep it."""
    async with engine_of(mutation, redis_servers) as engine:
        for number in range(HISTORIES):
            try:
                await LAWS[mutation.law](engine, Random(number))
            except AssertionError:
                return number
    return None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each}, {each.law}")
async def test_a_mutation_breaks_its_law(mutation, redis_servers):
    found = await counter_example(mutation, redis_servers)
    assert found is not None, f"mutation {mutation} survives {HISTORIES} histories of {mutation.law}"


@pytest.mark.parametrize("unchanged", UNCHANGED, ids=lambda each: f"{each.law}, {each.engine}")
async def test_the_text_as_it_is_keeps_every_law_over_the_same_histories(unchanged, redis_servers):
    assert await counter_example(unchanged, redis_servers) is None


def test_a_pattern_that_is_no_longer_there_is_told():
    for engine in (BUCKET, SCRIPTS):
        gone = Mutation("gone", engine, PLACES, (("a pattern of a text long ago", ""),))
        with pytest.raises(AssertionError, match="mutation gone"):
            gone.change("another text")
        with pytest.raises(AssertionError, match="mutation gone"):
            gone.assert_in_some_script()


# The properties of the model by itself


@contextmanager
def bounded_examples():
    """Hypothesis draws the same examples each time, and does not shorten what it finds."""
    settings.register_profile(
        "of mutations",
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    before = settings.default
    settings.load_profile("of mutations")
    try:
        yield
    finally:
        settings.register_profile("before", before)
        settings.load_profile("before")


@pytest.mark.parametrize(
    ("mutation", "name"), [(each, name) for each in MUTATIONS for name in each.properties], ids=str
)
def test_a_mutation_of_the_model_breaks_its_properties(mutation, name):
    path = ROOT / "tests/unit/core/test_bucket_properties.py"
    spec = importlib.util.spec_from_file_location(f"properties of {mutation}", path)
    properties = importlib.util.module_from_spec(spec)
    with bounded_examples():
        spec.loader.exec_module(properties)
        properties.bucket = module_of(BUCKET, mutation)
        with pytest.raises(AssertionError):
            getattr(properties, name)()
