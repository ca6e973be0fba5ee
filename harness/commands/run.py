"""`harness run`: one run from the request to the record.

Torch is imported only when everything that can be refused without it has been.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.base.hub import fetched_bytes
from harness.commands.console import RunDisplay, print_result
from harness.config.compose import compose_run
from harness.config.schema import RunConfig
from harness.parsing import home_path
from harness.records.record import Record, RunStatus
from harness.records.redact import message
from harness.records.run_directory import RunDirectory
from harness.request import Request, make_request, settled_record
from harness.training.libraries import import_libraries

if TYPE_CHECKING:
    from harness.base.build import Base
    from harness.training.passes import Ranks

_EXIT_CODES = {RunStatus.completed: 0, RunStatus.interrupted: 130}


def run_command(overrides: Sequence[str], *, as_json: bool) -> int:
    """Train the run that `overrides` describe, or show it if it is done; return the exit code."""
    config = compose_run(overrides)
    record, directory = run(config)
    print_result(record, directory, as_json=as_json)
    return _EXIT_CODES.get(record.status, 1)


def run(config: RunConfig) -> tuple[Record, RunDirectory]:
    """Train one run and return its record. A run that has ended well before is not trained again."""
    request = make_request(config)
    directory = request.directory
    settled = settled_record(directory)
    if settled is not None:
        return settled, directory
    if directory.path.is_dir():
        with directory.lock():
            pass  # a run that another process trains is refused before torch is loaded
    for line in _fetched(request):
        print(message(f"harness: {line}"), file=sys.stderr)
    if config.resources.data_parallel > 1:
        from harness.parallel.launcher import train_in_ranks

        return train_in_ranks(request), directory
    return train_request(request), directory


def _fetched(request: Request) -> Iterator[str]:
    """Say what a run takes from the Hugging Face hub, and how much that is, before it does."""
    source, data = request.source, request.config.data
    asked = []
    if source.directory is None:
        asked.append((f"model={source.name}", source.name, source.revision, "model"))
    if data.hub is not None and not home_path(data.hub).is_dir():
        asked.append((f"data.hub={data.hub}", data.hub, data.revision, "dataset"))
    for shown, name, revision, kind in asked:
        size = fetched_bytes(name, revision, kind)
        amount = "" if size is None else f", {size / 1e9:.2g} GB"
        yield f"{shown} comes from the Hugging Face hub{amount}; what its cache has is not fetched again"


def train_request(
    request: Request,
    ranks: "Ranks | None" = None,
    *,
    shard: "Callable[[Base], None] | None" = None,
    is_probe: bool = False,
) -> Record:
    """Train a run in this process, with the help of other `ranks` if there are any; return its record.

    `shard` divides the base among them, where the run asks for that.
    """
    import_libraries()
    from harness.measure.memory import is_out_of_memory
    from harness.training.entry import record_without_base
    from harness.training.launch import make_job, open_base, prepare
    from harness.training.pass_size import PassSizer
    from harness.training.passes import ALONE
    from harness.training.session import Queue, RunEnded, train
    from harness.training.stop import stop_on_signals

    config, source, fingerprint = request.config, request.source, request.fingerprint
    directory = request.directory
    data = prepare(config, source, fingerprint)
    with RunDisplay(request.identity.run_id) as display:
        try:
            shared = open_base(config, source, fingerprint, shard)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            with directory.lock():
                job = make_job(request, data)
                return record_without_base(job, error)
        with directory.lock(), stop_on_signals() as stop:
            settled = settled_record(directory)  # by a process that held the lock until just now
            if settled is not None:
                return settled
            job = make_job(request, data)
            job.is_probe = is_probe
            sizer = PassSizer(max_slots=1)
            for event in train(shared, Queue([job]), sizer=sizer, stop=stop, ranks=ranks or ALONE):
                display.show(event)
                if isinstance(event, RunEnded):
                    return event.record
    raise KeyboardInterrupt  # asked to stop before the run was admitted
