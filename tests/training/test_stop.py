"""A polite end by real signals, and a terminal that has gone."""

import os
import signal
import subprocess
import sys

import pytest

from harness.training.stop import STOPS, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_only_a_second_ctrl_c_is_final(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOPS]
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal is number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LEAVING = """
import os, signal, sys
from harness.training.stop import stop_on_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite may run under nohup
with stop_on_signals() as stop:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    places = [os.path.realpath(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
os.write(int(sys.argv[2]), (" ".join(places) + f" {stop.signal.name}").encode())
"""


def places_after(name: str) -> list[str]:
    """Return where a process's streams go that has had a signal; its input and errors were a terminal."""
    of_terminal, terminal = os.openpty()
    read, write = os.pipe()
    try:
        subprocess.run(
            [sys.executable, "-c", LEAVING, name, str(write)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=terminal,
            pass_fds=[write],
            check=True,
        )
        return os.read(read, 4096).decode().split()
    finally:
        for descriptor in (of_terminal, terminal, read, write):
            os.close(descriptor)


def test_where_the_terminal_has_gone_what_was_printed_to_it_goes_nowhere_and_a_file_stays() -> None:
    given, printed, errors, told = places_after("SIGHUP")
    assert given == errors == os.devnull
    assert printed.endswith("]")  # pipe:[1234]
    assert told == "SIGHUP"
    given, printed, errors, told = places_after("SIGTERM")
    assert given == errors != os.devnull
    assert told == "SIGTERM"
