import json
import stat
import subprocess
import sys
import textwrap

import pytest

from proxy.adapters.secrets import PEPPER_FILE, SecretsInvalid, create_once, load_or_create_pepper


def test_made_once_and_for_the_owner_alone(tmp_path):
    data_dir = tmp_path / "data"
    peppers = load_or_create_pepper(data_dir).latest()
    assert len(peppers.secrets[peppers.current_id]) == 32
    assert load_or_create_pepper(data_dir).latest() == peppers
    assert [path.name for path in data_dir.iterdir()] == [PEPPER_FILE]
    assert stat.S_IMODE((data_dir / PEPPER_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    assert load_or_create_pepper(tmp_path / "other").latest().secrets != peppers.secrets


def test_processes_that_start_at_once_agree(tmp_path):
    program = """
        import hashlib, sys
        from pathlib import Path
        from proxy.adapters.secrets import load_or_create_pepper
        print("ready", flush=True)
        sys.stdin.read()
        print(hashlib.sha256(load_or_create_pepper(Path(sys.argv[1])).latest().secrets[1]).hexdigest())
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
        process.stdin = None
    digests = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(digests) == 1
    assert [path.name for path in tmp_path.iterdir()] == [PEPPER_FILE]


def test_whoever_comes_second_changes_nothing(tmp_path):
    create_once(tmp_path / "file", b"first")
    create_once(tmp_path / "file", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}


def test_several_versions_can_be_kept(tmp_path):
    content = {"current": 2, "peppers": {"1": "aa" * 32, "2": "bb" * 32}}
    (tmp_path / PEPPER_FILE).write_text(json.dumps(content))
    peppers = load_or_create_pepper(tmp_path).latest()
    assert (peppers.current_id, sorted(peppers.secrets)) == (2, [1, 2])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"current": 1, "peppers": {}}',
        '{"current": 1, "peppers": {"1": "c0ffee"}}',
        '{"current": 2, "peppers": {"1": "' + "c0ffee" * 12 + '"}}',
        '{"current": 1, "peppers": {"1": "' + "coffee" * 12 + '"}}',
        "\udcff",
    ],
)
def test_a_file_that_is_wrong_is_refused_without_quoting_it(tmp_path, content):
    path = tmp_path / PEPPER_FILE
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SecretsInvalid) as raised:
        load_or_create_pepper(tmp_path)
    assert str(path) in str(raised.value)
    assert "offee" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert path.read_bytes() == content.encode("utf-8", "surrogateescape")
