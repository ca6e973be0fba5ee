"""One rank of a run with `resources.data_parallel` above 1, as torchrun starts it."""

import os
import signal
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.config.resources import Shard
from harness.errors import RequestError
from harness.parallel.rendezvous import NO_MEMORY, REFUSED, STOPPED, Rendezvous, rank_log
from harness.request import Request
from harness.training.stop import STOPS


def main(directory: Path) -> int:
    """Take part in the run that is asked for in `directory`; return the exit code, 0 wherever a record tells
    how the run has ended."""
    rendezvous, rank = Rendezvous(directory), int(os.environ["RANK"])
    request, sys.argv = rendezvous.asked()
    _write_output_to(rank_log(request, rank), keep_stderr=rank == 0)
    if rank == 0:
        for each in (signal.SIGTERM, signal.SIGHUP):  # until the run itself listens
            if signal.getsignal(each) is not signal.SIG_IGN:
                signal.signal(each, signal.default_int_handler)
        rendezvous.leader.write_text(str(os.getpid()))
    else:  # the leader decides, and without it there is nothing to do
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
    try:
        return _take_part(request)
    except RequestError as error:
        rendezvous.refusal.write_text(str(error), encoding="utf-8")
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        from harness.measure.memory import is_out_of_memory

        os.write(2, traceback.format_exc().encode())
        return NO_MEMORY if is_out_of_memory(error) else 1


def _take_part(request: Request) -> int:
    """Lead or follow, and return the exit code; that another rank is lost is not this one's failure."""
    from harness.base.quick_imports import quiet_libraries
    from harness.commands.run import train_request
    from harness.parallel.follower import Follower
    from harness.parallel.fsdp import share_out
    from harness.parallel.group import RankLost, join
    from harness.parallel.leader import Leader
    from harness.parallel.watch import Watch
    from harness.training.launch import open_base

    quiet_libraries()
    shards = request.config.resources.shard is Shard.fsdp
    try:
        with join(request.config.resources) as group:
            watch = Watch([pid for pid in group.exchange(os.getpid()) if pid != os.getpid()])
            watch.start()
            if group.is_leader:
                logs = [rank_log(request, rank) for rank in range(group.size)]
                with Leader(group, logs) as leader:
                    train_request(request, leader, shard=leader.shard if shards else None)
                    watch.end()
                if leader.fault is not None and leader.fault.is_out_of_memory:
                    os.write(2, f"{leader.fault.text}\n".encode())
                    return NO_MEMORY
            else:
                resources = replace(request.config.resources, device=str(group.device))
                config = replace(request.config, resources=resources)
                shard = partial(share_out, group=group) if shards else None
                open_ours = partial(open_base, config, request.source, request.fingerprint, shard)
                Follower(group, open_ours, shards=shards).follow()
                watch.end()
    except RankLost as lost:
        os.write(2, f"{lost}\n".encode())
    return 0


def _write_output_to(log: Path, *, keep_stderr: bool) -> None:
    """Send what this process and its libraries print to `log`; sys.stderr may stay what shows progress."""
    terminal = os.dup(2)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    if keep_stderr:
        sys.stderr = open(terminal, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    else:
        os.close(terminal)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
