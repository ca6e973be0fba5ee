"""The command's own process while ranks train: it starts them by torchrun's agent and says how they ended.

Signals go on to the leading rank, which ends as a run alone does. A rank that dies ends the run: torchrun
ends the others, and the record says which it was and where its output is.
"""

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from harness.config.compose import config_tree
from harness.errors import RequestError
from harness.parallel.rendezvous import NO_MEMORY, REFUSED, STOPPED, Rendezvous, rank_log
from harness.records.provenance import collect_provenance
from harness.records.record import Record, RecordError, RunStatus, read_record, write_record
from harness.request import Request, settled_record
from harness.training.stop import STOPS, leave_terminal

RANK_MODULE = "harness.commands.rank"
_KILL_SECONDS = 10
"""How long ranks have to end when this process gives up, before they are killed."""
_PATIENCE = 2
"""Signals that are passed on; one more, and this process gives up."""
_TORCHRUN_TAKES = (signal.SIGQUIT,)


class _RankFailedError(Exception):
    """A rank has not ended by itself."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(rank, exit_code)
        self.rank, self.exit_code = rank, exit_code


def train_in_ranks(request: Request) -> Record:
    """Train a run in `resources.data_parallel` processes and return its record.

    Raises RequestError for what only the model or its data can refuse, and KeyboardInterrupt where it was
    stopped at once, or before the run had begun.
    """
    _begin_logs(request)
    with tempfile.TemporaryDirectory(prefix="harness-") as directory:
        rendezvous = Rendezvous(Path(directory))
        rendezvous.ask(request)
        try:
            with _signals_forwarded(rendezvous):
                _run_torchrun(request, rendezvous)
        except _RankFailedError as failed:
            return _after_failure(request, rendezvous, failed)
        except KeyboardInterrupt:
            _interrupt_record(request)
            raise
    return read_record(request.directory.record)


def _after_failure(request: Request, rendezvous: Rendezvous, failed: _RankFailedError) -> Record:
    """Say what the end of a rank means for the run."""
    settled = settled_record(request.directory)
    if settled is not None:  # whatever happened afterwards
        return settled
    if failed.rank == 0 and failed.exit_code == REFUSED and rendezvous.refusal.exists():
        _remove_logs(request)
        raise RequestError(rendezvous.refusal.read_text(encoding="utf-8"))
    if failed.rank == 0 and failed.exit_code == STOPPED:
        raise KeyboardInterrupt
    out_of_memory = failed.exit_code == NO_MEMORY
    status = RunStatus.out_of_memory if out_of_memory else RunStatus.failed
    return _end_record(request, status, _how_it_ended(request, failed))


def _run_torchrun(request: Request, rendezvous: Rendezvous) -> None:
    """Start the ranks as `torchrun --standalone` does and wait for all; raises for the first that failed."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request.config.resources.data_parallel,
        run_id=request.identity.run_id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in _TORCHRUN_TAKES),
        shutdown_timeout=_KILL_SECONDS,
    )
    logging.disable()  # what the agent has to say is said in the record
    try:
        elastic_launch(config, sys.executable)("-m", RANK_MODULE, str(rendezvous.directory))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _RankFailedError(rank, failure.exitcode) from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _signals_forwarded(rendezvous: Rendezvous) -> Iterator[None]:
    """Pass what asks to stop on to the leading rank, which knows how to (main thread only)."""
    count = 0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if number == signal.SIGHUP:
            leave_terminal()
        if count > _PATIENCE or not rendezvous.leader.exists():
            raise KeyboardInterrupt
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(int(rendezvous.leader.read_text()), number)

    ours = [each for each in STOPS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in (*ours, *_TORCHRUN_TAKES)}
    for number in ours:
        signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_record(request: Request) -> None:
    """Say that a run was stopped at once, if it had begun and its leader has not said so."""
    with suppress(RecordError):
        if read_record(request.directory.record).status is RunStatus.running:
            _end_record(request, RunStatus.interrupted, "stopped at once")


def _end_record(request: Request, status: RunStatus, error: str) -> Record:
    """Write how a run has ended whose leader could not say it, and return the record."""
    directory = request.directory
    try:
        record = read_record(directory.record)
    except RecordError:
        record = Record(
            run_id=request.identity.run_id,
            status=status,
            config=config_tree(request.config),
            provenance=collect_provenance(model_fingerprint=request.fingerprint).as_tree(),
        )
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.write_config(record.config)
    record.status, record.error = status, error
    write_record(directory.record, record)
    return record


def _how_it_ended(request: Request, failed: _RankFailedError) -> str:
    """Name the rank, what ended it, and its log."""
    log = rank_log(request, failed.rank)
    who = f"process {failed.rank} of {request.config.resources.data_parallel}"
    if failed.exit_code < 0:
        return (
            f"{who} was ended by {signal.Signals(-failed.exit_code).name}; its output is in {log}"
        )
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = lines[-1] if lines else "without a word"
    return f"{who} exited with {failed.exit_code}: {last}; its output is in {log}"


def _begin_logs(request: Request) -> None:
    """Leave an empty log for each rank: one that dies at once has one too."""
    _remove_logs(request)
    for rank in range(request.config.resources.data_parallel):
        log = rank_log(request, rank)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()


def _remove_logs(request: Request) -> None:
    """Remove the logs of the ranks, and the run's directory if there is nothing else in it."""
    shutil.rmtree(rank_log(request, 0).parent, ignore_errors=True)
    with suppress(OSError):
        request.directory.path.rmdir()
