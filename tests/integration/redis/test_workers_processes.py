"""Workers that die, are told to stop, lose their supervisor, or cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from contextlib import suppress

import psutil
import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import COMMAND, clean_environment, eventually, run_tollgate
from tests.support.workers import ask, burst, figure, has_ended, slow_stream, until_all_serve, workers_of


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


@pytest.fixture
def start(simulator, redis, tmp_path):
    def run():
        options = ("--workers", "2", "--redis-url", redis.url)
        # A deadline that a busy machine keeps: every limit is Redis's to hold.
        settings = "[limits]\nredis_deadline_ms = 10000\n"
        return run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings, options=options)

    return run


@pytest.fixture
def gateway(start):
    with start() as running:
        until_all_serve(running, 2)
        yield running


def worker_serving(gateway, answer):
    port = answer.raw.connection.sock.getsockname()[1]

    def serves(process):
        return any(each.raddr and each.raddr.port == port for each in process.net_connections("tcp4"))

    (found,) = [process for process in workers_of(gateway) if serves(process)]
    return found


def until_deaths(gateway, count):
    """The supervisor has seen so many: whatever was connected to them is gone by then."""
    eventually(lambda: gateway.stderr.count("ended with status -9") >= count, what=f"{count} deaths")


def figures_files(gateway):
    (directory,) = gateway.data_dir.glob("metrics-*")
    return {path.name for path in directory.glob("*.db")}


def all_idle(gateway):
    return figure(gateway, "tollgate_in_flight_requests") == 0


def test_a_killed_worker_is_replaced_and_what_it_had_begun_is_in_the_ledger_once(gateway, session):
    team = gateway.add_team("growth")
    with slow_stream(session, gateway, team, 600_000) as answer:
        worker = worker_serving(gateway, answer)
        (other,) = [process for process in workers_of(gateway) if process != worker]
        eventually(lambda: figure(gateway, "tollgate_in_flight_requests") == 1, what="a request in flight")
        worker.kill()
        with pytest.raises(requests.exceptions.RequestException):
            answer.content  # noqa: B018 - reads what is left of it
    # While one is away the other takes everything.
    until_deaths(gateway, 1)
    assert burst([gateway], team, 20) == {200: 20}
    until_all_serve(gateway, 3)
    assert other in workers_of(gateway)
    assert len(workers_of(gateway)) == 2
    eventually(lambda: all_idle(gateway), what="nothing in flight")
    events = gateway.events("growth", 21)
    assert len(events) == 21
    (interrupted,) = [event for event in events if event["outcome"] == "interrupted"]
    assert interrupted["estimated"] == 1
    assert interrupted["output_tokens"] == 8, "what was reserved"
    assert gateway.stderr.count("ended with status -9") == 1


def test_figures_tie_out_and_no_counter_goes_back_over_five_deaths(gateway):
    team, limited = gateway.add_team("growth"), gateway.add_team("limited", "free")

    def requests_told():
        return figure(gateway, "tollgate_requests_total")

    made = sum(burst([gateway], each, 40).total() for each in (team, limited))
    eventually(lambda: requests_told() == made, what="the figures of all requests")
    files = figures_files(gateway)
    seen, stop = [], threading.Event()

    def watch():
        while not stop.wait(0.01):
            seen.append(requests_told())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for deaths in range(5):
            workers_of(gateway)[0].kill()
            until_deaths(gateway, deaths + 1)
            made += burst([gateway], team, 5)[200]
            until_all_serve(gateway, 3 + deaths)
            # A request is counted a moment after it is answered: the next to die is not to take that along.
            eventually(lambda so_far=made: requests_told() == so_far, what="the figures of all requests")
    finally:
        stop.set()
        watcher.join()
    assert made == 40 + 40 + 25
    assert seen == sorted(seen)
    eventually(lambda: all_idle(gateway), what="nothing in flight")
    assert figure(gateway, "tollgate_requests_total", team="limited", outcome="limited") == 40 - figure(
        gateway, "tollgate_requests_total", team="limited", outcome="ok"
    )
    tokens = sum(event["output_tokens"] for event in gateway.events("growth", 65))
    eventually(lambda: figure(gateway, "tollgate_tokens_total", team="growth", kind="output") == tokens)
    # A file a kind and seat; a kind that a seat had no use for before may come.
    kinds = {name.rpartition("_")[0] for name in figures_files(gateway)}
    assert len(files | figures_files(gateway)) <= 2 * len(kinds)


def test_all_workers_finish_their_streams_on_sigterm(gateway, simulator, session):
    team = gateway.add_team("growth")
    # So slow that none has ended before upstream stands still.
    answers = [slow_stream(session, gateway, team, 200) for _ in range(6)]
    processes = workers_of(gateway)
    with simulator.standing_still():
        gateway.signal(signal.SIGTERM)
        eventually(lambda: gateway.ready_status() == 503, what="not ready")
    assert [answer.content.endswith(b"data: [DONE]\n\n") for answer in answers] == [True] * 6
    assert gateway.wait() == 0
    assert all(has_ended(process) for process in processes)
    assert [event["outcome"] for event in gateway.events("growth", 6)] == ["ok"] * 6
    assert list(gateway.data_dir.glob("metrics-*")) == []
    assert not [path for path in (gateway.data_dir / "spool").iterdir() if path.is_dir()]


def test_workers_that_lose_their_supervisor_drain_and_leave_nothing(gateway, session, start):
    team = gateway.add_team("growth")
    processes = workers_of(gateway)
    try:
        answers = [slow_stream(session, gateway, team, 60) for _ in range(4)]
        gateway.signal(signal.SIGKILL)
        assert [answer.content.endswith(b"data: [DONE]\n\n") for answer in answers] == [True] * 4
        eventually(lambda: all(has_ended(process) for process in processes), what="the end of all workers")
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    assert [event["outcome"] for event in gateway.events("growth", 4)] == ["ok"] * 4
    (left,) = gateway.data_dir.glob("metrics-*")
    with start() as next_one:
        assert not left.exists()
        assert ask(next_one, team).status_code == 200


def serve(data_dir, redis, *options):
    return subprocess.run(
        (*COMMAND, "serve", "--workers", "2", "--redis-url", redis.url, "--data-dir", str(data_dir), *options),
        env=clean_environment(OPENAI_API_KEY="sk-upstream"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("which", ["--port", "--admin-port"])
def test_a_port_that_is_taken_ends_the_start(redis, tmp_path, which):
    other = {"--port": "--admin-port", "--admin-port": "--port"}[which]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve(tmp_path, redis, which, str(taken.getsockname()[1]), other, "0")
    assert done.returncode == 1
    assert "cannot listen: " in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_that_cannot_start_end_the_start(redis, tmp_path):
    (tmp_path / "spool").write_text("not a directory")
    done = serve(tmp_path, redis, "--port", "0", "--admin-port", "0")
    assert done.returncode == 1
    assert "worker 0: cannot serve: " in done.stderr
    assert done.stderr.splitlines()[-1].endswith("no worker came to serve in 3 attempts")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("interrupt", [False, True])
def test_nothing_survives_a_start_that_is_interrupted(redis, tmp_path, interrupt):
    arguments = (*COMMAND, "serve", "--workers", "2", "--redis-url", redis.url, "--data-dir", str(tmp_path))
    with subprocess.Popen(
        (*arguments, "--port", "0", "--admin-port", "0"),
        env=clean_environment(OPENAI_API_KEY="sk-upstream"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        try:
            children = eventually(lambda: psutil.Process(server.pid).children(), what="a worker")
            if interrupt:
                # As a terminal does it.
                os.killpg(server.pid, signal.SIGINT)
            else:
                server.terminate()
            _, said = server.communicate(timeout=30)
            assert server.returncode == 0, said
            assert "Traceback" not in said
            assert all(has_ended(child) for child in children)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
