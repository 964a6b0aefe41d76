import pytest

from proxy.adapters.redis.outcomes import (
    ConnectionLost,
    Definite,
    ErrorReply,
    Indefinite,
    NeverSent,
    RedisFailure,
    TimedOut,
    Why,
)

# As Redis 6.2 and 7.0 send them, without the leading minus.
TEXTS = [
    ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT", True),
    ("MOVED 3999 127.0.0.1:6381", "MOVED", True),
    ("READONLY You can't write against a read only replica.", "READONLY", True),
    ("LOADING Redis is loading the dataset in memory", "LOADING", True),
    ("OOM command not allowed when used memory > 'maxmemory'.", "OOM", True),
    ("OOM command not allowed when used memory > 'maxmemory'. script: caee, on @user_script:1.", "OOM", True),
    (
        "ERR Error running script (call to f_caee): @user_script:1: @user_script: 1: -READONLY You can't write.",
        "READONLY",
        True,
    ),
    ("ERR Error running script (call to f_caee): user_script:3: attempt to index a nil value", "ERR", False),
    ("ERR wrong number of arguments for 'get' command", "ERR", False),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", "WRONGTYPE", False),
    ("", "", False),
]


@pytest.mark.parametrize(("text", "code", "nothing_done"), TEXTS)
def test_the_code_says_whether_anything_was_done(text, code, nothing_done):
    reply = ErrorReply.of(text)
    assert (reply.code, reply.nothing_done) == (code, nothing_done)


@pytest.mark.parametrize("quotes", ["''", "``"])
def test_arguments_that_a_server_repeats_are_cut_off(quotes):
    reply = ErrorReply.of(f"ERR unknown command '{quotes[0]}AUTH{quotes[1]}, with args beginning with: 'hunter2' ")
    assert "hunter2" not in f"{reply} {reply!r} {reply.message} {reply.args}"


@pytest.mark.parametrize(
    ("failure", "half"),
    [
        (ErrorReply("ERR"), Definite),
        (NeverSent(Why.AWAY), Definite),
        (TimedOut(), Indefinite),
        (ConnectionLost(), Indefinite),
    ],
)
def test_every_failure_is_in_one_half_of_the_family(failure, half):
    assert isinstance(failure, half)
    assert isinstance(failure, RedisFailure)
    assert not isinstance(failure, Definite) or not isinstance(failure, Indefinite)


def test_a_refusal_says_why_and_where():
    assert str(NeverSent(Why.RESTING, "127.0.0.1:6379")) == "resting 127.0.0.1:6379"
    assert str(ErrorReply("OOM", "command not allowed")) == "OOM command not allowed"
