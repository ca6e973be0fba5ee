"""A process that waits for one that is gone ends by itself, whatever it is waiting in."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import pytest

from harness.parallel import watch


def _wait_for(peer: int, connection: Connection) -> None:
    watch._POLL_SECONDS, watch._GRACE_SECONDS = 0.05, 0.2
    watch.Watch([peer]).start()
    connection.send("watching")
    time.sleep(60)


def _launch(peer: int, connection: Connection) -> None:
    """Start a waiting process, and die without a word to it."""
    child = os.fork()
    if child == 0:
        _wait_for(peer, connection)
    connection.send(child)
    connection.recv()
    os._exit(0)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def peer():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    yield process
    process.kill()
    process.join()


def test_a_rank_ends_when_another_is_killed(peer) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    rank = context.Process(target=_wait_for, args=(peer.pid, theirs))
    rank.start()
    assert ours.recv() == "watching"
    rank.join(0.5)
    assert rank.is_alive()
    peer.kill()  # and not waited for: it is a zombie, as torchrun's are for a moment
    rank.join(10)
    assert rank.exitcode == 0


def test_a_rank_ends_when_its_launcher_is_gone(peer) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    launcher = context.Process(target=_launch, args=(peer.pid, theirs))
    launcher.start()
    rank = next(said for said in (ours.recv(), ours.recv()) if said != "watching")
    ours.send("go")
    launcher.join(10)
    deadline = time.monotonic() + 10
    while is_alive(rank):
        assert time.monotonic() < deadline
        time.sleep(0.02)
