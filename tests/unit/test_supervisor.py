"""The keeper of workers, with real workers in real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

import psutil
import pytest
import uvloop

from proxy.adapters.prometheus_shared import render_shared
from proxy.app import open_database
from proxy.app import supervisor as supervisor_module
from proxy.app.figures import held, own_figures
from proxy.app.fleet import serving_fleet
from proxy.app.supervisor import NeverReady, Supervisor
from proxy.settings import load


def settings_in(data_dir, workers=2, **more):
    values = {"data_dir": str(data_dir), "server.port": 0, "server.admin_port": 0, "server.workers": workers}
    # Nobody listens on port 1: what a worker does without its Redis is not what these tests are about.
    environment = {"OPENAI_API_KEY": "sk-upstream", "TOLLGATE_REDIS_URL": "redis://127.0.0.1:1/0"}
    return load(environ=environment, overrides=values | more)


async def until(holds, what):
    try:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - what is waited for happens in other processes
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not in time: {what}") from None


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_worker_that_dies_is_replaced_in_its_seat_and_forgotten(tmp_path):
    forgotten = []
    settings = settings_in(tmp_path)
    with open_database(settings), own_figures(tmp_path) as figures:
        supervisor = Supervisor(settings, figures, forget_dead=forgotten.append)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run())
            with pytest.raises(LookupError):
                await supervisor.someone_ready()
            await supervisor.until_ready()
            await supervisor.someone_ready()
            await until(lambda: len(supervisor.pids) == 2, "both have been started")
            before = supervisor.pids
            os.kill(before[1], signal.SIGKILL)
            await until(lambda: supervisor.restarts == 1 and len(supervisor.pids) == 2, "another worker")
            assert supervisor.pids[0] == before[0]
            assert supervisor.pids[1] != before[1]
            assert forgotten == [1]
            last = supervisor.pids
            supervisor.stop()
            await supervisor.until_ended()
    assert sorted(forgotten) == [0, 1, 1]
    assert all(gone(pid) for pid in last)
    assert supervisor.pids == ()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_worker_that_dies_before_it_is_told_its_seat_is_replaced(tmp_path, monkeypatch, new_loop):
    settings = settings_in(tmp_path, workers=1)
    start, dead = asyncio.create_subprocess_exec, []

    async def start_one(*arguments, **options):
        process = await start(*arguments, **options)
        if not dead:
            dead.append(process.pid)
            process.kill()
            await process.wait()
            await until(process.stdin.is_closing, "its pipe is closed")
        return process

    async def see():
        supervisor = Supervisor(settings, figures, forget_dead=lambda _: None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run())
            await supervisor.until_ready()
            assert supervisor.restarts == 1
            assert dead[0] not in supervisor.pids
            supervisor.stop()
            await supervisor.until_ended()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_one)
    with open_database(settings), own_figures(tmp_path) as figures, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(see())


async def test_it_gives_up_where_no_worker_ever_serves(tmp_path, caplog):
    settings = settings_in(tmp_path, workers=1)
    (tmp_path / "spool").write_text("not a directory")
    with open_database(settings) as engine, caplog.at_level(logging.ERROR), pytest.raises(NeverReady, match="3"):
        async with serving_fleet(settings, engine):
            pytest.fail("it serves")
    assert "giving up" in caplog.text
    assert not list(tmp_path.glob("metrics-*"))


async def test_it_ends_at_once_while_it_waits_to_start_another(tmp_path):
    settings = settings_in(tmp_path, workers=1)
    (tmp_path / "spool").write_text("not a directory")
    with open_database(settings), own_figures(tmp_path) as figures:
        supervisor = Supervisor(settings, figures, forget_dead=lambda _: None)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run())
            await until(lambda: supervisor.restarts >= 1, "a second attempt")
            supervisor.stop()
            await supervisor.until_ended()
            with pytest.raises(NeverReady):
                await supervisor.until_ready()


async def test_a_worker_that_hangs_in_its_start_does_not_keep_it_from_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor_module, "_KILL_AFTER_DRAIN_SECONDS", 0.1)
    settings = settings_in(tmp_path, workers=1, **{"server.drain_seconds": 0.1, "server.ready_grace_seconds": 0})
    stop, hanging, start = asyncio.Event(), [], asyncio.create_subprocess_exec

    async def start_one(*arguments, **options):
        # Until it is told its seat it cannot come to serve.
        process = await start(*arguments, **options)
        hanging.append(process.pid)
        psutil.Process(process.pid).suspend()
        asyncio.get_running_loop().call_later(0.1, stop.set)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_one)
    with open_database(settings) as engine, pytest.raises(NeverReady, match="stopped"):
        async with asyncio.timeout(60), serving_fleet(settings, engine, stop=stop):
            pytest.fail("it serves")
    assert len(hanging) == 1
    assert gone(hanging[0])


@pytest.mark.parametrize("which", ["server.port", "server.admin_port"])
async def test_a_port_that_is_taken_is_no_reason_to_start_anything(tmp_path, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = settings_in(tmp_path, **{which: taken.getsockname()[1]})
        with open_database(settings) as engine, pytest.raises(OSError, match="in use"):
            async with serving_fleet(settings, engine):
                pytest.fail("it serves")
    assert not list(tmp_path.glob("metrics-*"))


# The directory of figures


def test_each_run_has_figures_of_its_own_and_leaves_none(tmp_path):
    with own_figures(tmp_path) as first, own_figures(tmp_path) as second:
        assert first != second
        assert first.is_dir()
        assert first.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes_with_the_next_and_not_while_a_worker_is_at_it(tmp_path):
    left = tmp_path / "metrics-left"
    left.mkdir()
    with held(left):
        (left / "counter_0.db").write_bytes(b"0")
    with held(left), own_figures(tmp_path):
        assert (left / "counter_0.db").exists()
    with own_figures(tmp_path):
        assert not left.exists()


def test_a_file_that_is_just_being_made_is_no_reason_to_tell_nothing(tmp_path):
    (tmp_path / "counter_0.db").touch()
    assert render_shared(tmp_path)[0] == b""
