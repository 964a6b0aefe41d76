"""Records of the ledger as they stand in spools: those written before are read, and are written the same today."""

import msgspec
import pytest

from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.usage import Usage

BEGUN = bytes.fromhex(
    "8ca86576656e745f6964a165a561745f6d7301aa726571756573745f6964a172a47465616da174a66b65795f6964a16ba865"
    "6e64706f696e74a463686174a56d6f64656ca16da8757073747265616da175b572657365727665645f696e7075745f746f6b"
    "656e7303b672657365727665645f6f75747075745f746f6b656e7304a870726963655f6964c0ac736572766963655f746965"
    "72a764656661756c74"
)
ENDED = bytes.fromhex(
    "de0011a86576656e745f6964a165a561745f6d7301aa726571756573745f6964a172a47465616da174a66b65795f6964a16b"
    "a8656e64706f696e74a463686174a56d6f64656ca16da8757073747265616da175a6737461747573ccc8a76f7574636f6d65"
    "a26f6ba5757361676587ac696e7075745f746f6b656e7301ad6f75747075745f746f6b656e7302b36361636865645f696e70"
    "75745f746f6b656e7303b263616368655f77726974655f746f6b656e7304b0726561736f6e696e675f746f6b656e7305b261"
    "7564696f5f696e7075745f746f6b656e7306b3617564696f5f6f75747075745f746f6b656e7307ad636f73745f7069636f5f"
    "75736409ae73617665645f7069636f5f75736408a870726963655f6964a170a9657374696d61746564c3a8617474656d7074"
    "7302ab6475726174696f6e5f6d731e"
)
DISPATCH = Dispatch("e", 1, "r", "t", "k", "chat", "m", "u", 3, 4, None)
EVENT = UsageEvent(
    "e", 1, "r", "t", "k", "chat", "m", "u", 200, Outcome.OK, Usage(1, 2, 3, 4, 5, 6, 7), 9, 8, "p", True, 2, 30
)


@pytest.mark.parametrize(("written", "record"), [(BEGUN, DISPATCH), (ENDED, EVENT)], ids=["begin", "end"])
def test_what_stands_in_a_spool_is_what_it_was(written, record):
    assert msgspec.msgpack.decode(written, type=type(record)) == record
    assert msgspec.msgpack.encode(record) == written
