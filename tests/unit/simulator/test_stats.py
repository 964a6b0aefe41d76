import hashlib
import json

from proxy.simulator.stats import Stats


def test_credentials_appear_as_digests_only():
    stats = Stats()
    stats.begin("/v1/x", "", ((b"Authorization", b"Bearer sk-1"), (b"API-Key", b"sk-2"), (b"Accept", b"*/*")))
    shown = dict(json.loads(stats.body())["seen_headers_last"])
    assert shown["Authorization"] == "sha256:" + hashlib.sha256(b"Bearer sk-1").hexdigest()[:16]
    assert shown["API-Key"] == "sha256:" + hashlib.sha256(b"sk-2").hexdigest()[:16]
    assert shown["Accept"] == "*/*"
    assert b"sk-1" not in stats.body()


def test_the_list_of_requests_is_bounded():
    stats = Stats()
    for number in range(1_005):
        stats.end(stats.begin(f"/v1/{number}", "", ()))
    shown = json.loads(stats.body())
    assert (shown["requests"], len(shown["records"])) == (1_005, 1_000)
    assert shown["records"][0]["path"] == "/v1/5"


def test_only_whole_answers_count_as_output_and_a_reset_keeps_what_is_in_flight():
    stats = Stats()
    whole, part, open_ = (stats.begin("/v1/x", "", ()) for _ in range(3))
    whole.output_tokens = whole.output_tokens_sent = 7
    whole.completed = True
    part.output_tokens, part.output_tokens_sent = 7, 2
    stats.end(whole)
    stats.end(part)
    assert (stats.output_tokens, stats.output_tokens_sent, stats.in_flight) == (7, 9, 1)
    stats.clear()
    assert (stats.requests, stats.output_tokens, stats.in_flight) == (0, 0, 1)
    stats.end(open_)
    assert stats.in_flight == 0
