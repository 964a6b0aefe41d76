import base64
import stat
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.cache_key_file import CACHE_KEY_FILE, load_or_create_cache_keys
from proxy.adapters.cache_keys import MasterKey, MasterKeys, MasterKeysInvalid, read_master_keys
from proxy.adapters.secrets import SecretsInvalid
from tests.support.tools import program

KEYS = st.binary(min_size=32, max_size=32)


def shown(key, *, is_padded=True, is_url_safe=False):
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(key).decode()
    return text if is_padded else text.rstrip("=")


@given(st.lists(KEYS, min_size=1, max_size=4, unique=True), st.booleans(), st.booleans(), st.sampled_from(" \n\t\r"))
def test_keys_are_read_in_either_alphabet_with_their_padding_or_without(keys, is_padded, is_url_safe, between):
    read = read_master_keys(between.join(shown(k, is_padded=is_padded, is_url_safe=is_url_safe) for k in keys) + "\n")
    assert read.sealing.key == keys[0]
    assert {key.key for key in read.by_id.values()} == set(keys)
    assert all(name == key.id == MasterKey(key.key).id for name, key in read.by_id.items())


def test_a_key_made_as_the_message_says_is_one():
    openssl = program("openssl", "openssl")
    made = subprocess.run([openssl, "rand", "-base64", "32"], capture_output=True, text=True, check=True).stdout
    assert len(read_master_keys(made).sealing.key) == 32


@given(st.binary(max_size=80).filter(lambda key: len(key) != 32))
def test_keys_of_another_length_are_none(key):
    with pytest.raises(MasterKeysInvalid):
        read_master_keys(shown(key))


@given(st.text(max_size=60))
def test_what_is_no_key_is_not_repeated(text):
    with pytest.raises(MasterKeysInvalid) as caught:
        read_master_keys(f"{text} not-a-key")
    assert text not in str(caught.value) or len(text) < 20


def test_the_bits_that_base64_has_to_spare_have_to_be_zero():
    text = shown(bytes(32))
    assert text.endswith("A=")
    with pytest.raises(MasterKeysInvalid, match="key 2"):
        read_master_keys(f"{text} {text[:-2]}B=")


def test_the_name_of_a_key_says_nothing_of_it_and_does_not_change():
    assert MasterKey(bytes(range(32))).id.hex() == "83a36e013082a166"
    assert bytes(range(8)) not in MasterKey(bytes(range(32))).id


def test_the_same_key_twice_is_one():
    assert len(MasterKeys.of(bytes(32), bytes(32)).by_id) == 1


# In the data directory


def test_made_once_and_for_the_owner_alone(tmp_path):
    data_dir = tmp_path / "data"
    keys = load_or_create_cache_keys(data_dir)
    assert load_or_create_cache_keys(data_dir) == keys
    assert [path.name for path in data_dir.iterdir()] == [CACHE_KEY_FILE]
    assert stat.S_IMODE((data_dir / CACHE_KEY_FILE).stat().st_mode) == 0o600
    assert load_or_create_cache_keys(tmp_path / "other") != keys


def test_workers_that_start_at_once_agree(tmp_path):
    program = """
        import sys
        from pathlib import Path
        from proxy.adapters.cache_key_file import load_or_create_cache_keys
        print("ready", flush=True)
        sys.stdin.read()
        print(load_or_create_cache_keys(Path(sys.argv[1])).sealing.id.hex())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    pipe = subprocess.PIPE
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 3
    for worker in workers:
        worker.stdin.close()
        worker.stdin = None
    assert len({worker.communicate(timeout=60)[0] for worker in workers}) == 1


def test_it_may_hold_several_and_may_not_hold_anything_else(tmp_path):
    file = tmp_path / CACHE_KEY_FILE
    file.write_text(f"{shown(bytes(32))}\n{shown(b'1' * 32)}\n")
    assert len(load_or_create_cache_keys(tmp_path).by_id) == 2
    for content in (b"", b"too-short", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(SecretsInvalid, match=r"cache\.key") as caught:
            load_or_create_cache_keys(tmp_path)
        assert "too-short" not in str(caught.value)
