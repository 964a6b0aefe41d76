import json
import stat
import subprocess
import sys
import textwrap

import pytest

from proxy.adapters import secrets
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


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_of_its_own_holds_the_peppers_of_several_machines(tmp_path):
    shared = tmp_path / "shared" / "peppers.json"
    one = load_or_create_pepper(tmp_path / "one", shared)
    other = load_or_create_pepper(tmp_path / "other", shared)
    assert one.latest() == other.latest()
    assert mode_of(shared) == 0o600
    assert not (tmp_path / "one").exists()


def test_a_new_version_becomes_the_current_one_and_is_seen_by_who_has_the_file_open(tmp_path):
    one, other = load_or_create_pepper(tmp_path), load_or_create_pepper(tmp_path)
    first = other.latest()
    made = one.add(2)
    assert (made.current_id, sorted(made.secrets), made.secrets[1]) == (2, [1, 2], first.secrets[1])
    assert len(made.secrets[2]) == 32
    assert made.secrets[2] != made.secrets[1]
    assert one.latest() == other.latest() == made
    assert mode_of(tmp_path / PEPPER_FILE) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [PEPPER_FILE]
    with pytest.raises(SecretsInvalid, match="version 2 already"):
        other.add(2)


def test_an_old_version_is_removed_and_the_current_one_is_not(tmp_path):
    file = load_or_create_pepper(tmp_path)
    file.add(2)
    with pytest.raises(SecretsInvalid, match="current"):
        file.remove(2)
    assert sorted(file.remove(1).secrets) == [2]
    assert sorted(file.remove(1).secrets) == [2]
    assert sorted(load_or_create_pepper(tmp_path).latest().secrets) == [2]


def test_lost_peppers_make_room(tmp_path):
    file = load_or_create_pepper(tmp_path)
    assert sorted(file.add(7, alone=True).secrets) == [7]
    assert file.latest().current_id == 7


def told_by(caplog):
    return [record for record in caplog.records if record.name == secrets.__name__]


@pytest.mark.parametrize("content", [None, "", '{"current": 1, "peppers": {"1": "c0ffee"}}'])
def test_a_file_that_breaks_later_is_told_and_the_peppers_go_on(tmp_path, caplog, content):
    file = load_or_create_pepper(tmp_path)
    before = file.latest()
    path = tmp_path / PEPPER_FILE
    good = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert file.latest() == before
    assert [record.levelname for record in told_by(caplog)] == ["ERROR"]
    assert str(path) in caplog.text
    assert "c0ffee" not in caplog.text
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    assert file.latest() == before
    assert len(told_by(caplog)) == 1


def test_a_pepper_that_turns_into_another_is_told_and_not_taken(tmp_path, caplog):
    file = load_or_create_pepper(tmp_path)
    before = file.latest()
    (tmp_path / PEPPER_FILE).write_text(json.dumps({"current": 1, "peppers": {"1": "cc" * 32}}))
    assert file.latest() == before
    assert "another pepper of version 1" in caplog.text
    assert "cccc" not in caplog.text


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    file = load_or_create_pepper(tmp_path)
    before = file.latest()
    monkeypatch.setattr("proxy.adapters.secrets._decode", lambda path: pytest.fail("read again"))
    assert file.latest() is before


def test_a_directory_that_cannot_be_written_keeps_the_file(tmp_path, monkeypatch):
    """As where a secret is mounted read-only."""
    file = load_or_create_pepper(tmp_path)
    before = (tmp_path / PEPPER_FILE).read_bytes()

    def refuse(self, target):
        raise OSError(30, "Read-only file system", str(target))

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        file.add(2)
    assert [path.name for path in tmp_path.iterdir()] == [PEPPER_FILE]
    assert (tmp_path / PEPPER_FILE).read_bytes() == before
    assert file.latest().current_id == 1


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    program = """
        import sys
        from pathlib import Path
        from proxy.adapters.secrets import load_or_create_pepper
        file = load_or_create_pepper(Path(sys.argv[1]))
        print("ready", flush=True)
        sys.stdin.read()
        for each in range(5):
            file.add(int(sys.argv[2]) + each)
    """
    load_or_create_pepper(tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start in (10, 20, 30)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
        process.stdin = None
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * 3
    expected = {1, *range(10, 15), *range(20, 25), *range(30, 35)}
    assert set(load_or_create_pepper(tmp_path).latest().secrets) == expected
