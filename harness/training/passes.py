"""One packed pass over a group of runs: gradients, numbers and time for each, and whose a failure is."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from harness.engine.cuda.backend import CudaBackend
from harness.engine.micro_step import Gradient, Work
from harness.engine.shared_base import SharedBase
from harness.errors import RunFailed
from harness.measure.memory import SavedBytes, is_out_of_memory
from harness.measure.meter import Meter, meter_of
from harness.measure.series import PassCost
from harness.training.entry import RunEntry
from harness.training.pass_size import PassSizer
from harness.training.slot import Slot, clip


class Added:
    """The backend holds what the pass has added to a run's gradient and loss."""


Outcome = Gradient | Added | Exception
"""Result of a pass for one run."""


class Ranks:
    """The processes that train a run, seen from the one that decides: here it is the only one.

    Where there are others (`harness.parallel.leader`), each computes some of the rows.
    """

    @property
    def size(self) -> int:
        """How many they are, this one included."""
        return 1

    def gradients(
        self, shared: SharedBase, slots: Sequence[Slot], work: Sequence[Work]
    ) -> list[Gradient]:
        """Return the gradients of one packed pass: `work` is what each of `slots` has next.

        Raises what has gone wrong in any process; then nothing has been changed.
        """
        return shared.backend.gradients(work)


ALONE = Ranks()


def check_size(asked: int, running: int) -> None:
    """Raise RunFailed unless a run is trained by as many processes as it asks for."""
    if asked != running:
        raise RunFailed(
            f"resources.data_parallel={asked} asks for {asked} processes, and {running} would train this "
            "run; `harness run` starts as many as are asked for"
        )


def advance(
    shared: SharedBase, sizer: PassSizer, group: list[RunEntry], ranks: Ranks
) -> list[tuple[RunEntry, Outcome]]:
    """Run one micro-step of `group` and give each run its gradient, or say what went wrong in it."""
    meter = meter_of(shared.base.device)
    joules, started = meter.energy_joules(), time.perf_counter()
    outcomes = _gradients(shared, sizer, group, ranks)
    received = [entry for entry, outcome in outcomes if not isinstance(outcome, Exception)]
    tokens = {entry: entry.slot.pass_tokens for entry in received}
    for entry, outcome in outcomes:
        match outcome:
            case Gradient():
                entry.slot.receive(outcome)
            case Added():
                entry.slot.passed()
    complete = [entry for entry in received if entry.slot.step_is_complete]
    _read_numbers([entry for entry in complete if not entry.slot.is_seated])
    goes_ahead = not sizer.is_timing(group)  # whose time would be that of two passes
    _move_seated(shared, [e for e in complete if e.slot.is_seated], goes_ahead=goes_ahead)
    if sizer.is_timing(group):
        meter.synchronize()
    seconds = time.perf_counter() - started
    if len(received) == len(group):
        sizer.observe(group, seconds)
    for entry, _ in outcomes:
        entry.slot.spend(seconds)
    _tell_cost(sizer, group, tokens, meter, joules)
    return outcomes


def _tell_cost(
    sizer: PassSizer,
    group: Sequence[RunEntry],
    tokens: dict[RunEntry, int],
    meter: Meter,
    joules_before: float | None,
) -> None:
    """Tell each run what the pass has cost, and how many shared it."""
    joules = meter.energy_joules()
    cost = PassCost(
        runs=len(group),
        input_tokens=sum(tokens.values()),
        reading=meter.now(),
        saved_bytes=sizer.pass_bytes(group) or group[0].slot.activation_bytes,
        joules=None if joules is None or joules_before is None else joules - joules_before,
    )
    for entry, own in tokens.items():
        entry.costs.add(cost, own)


def _gradients(
    shared: SharedBase, sizer: PassSizer, group: list[RunEntry], ranks: Ranks
) -> list[tuple[RunEntry, Outcome]]:
    """Return the gradients of one forward pass; where it fails, find out whose fault it was.

    Nothing has been changed when a pass fails, so it can be repeated: out of memory with half of the runs,
    then with half of the only run's micro-batch (and from then on so), anything else one run at a time.
    """
    captured = captured_of(shared, group)
    try:
        work = [entry.slot.next_work() for entry in group]
        if captured is not None:
            _add_pass(captured, sizer, group, work)
            return [(entry, Added()) for entry in group]
        with _counted(shared, sizer, group):
            gradients = ranks.gradients(shared, [entry.slot for entry in group], work)
        return list(zip(group, gradients, strict=True))
    except Exception as error:
        if captured is not None:
            captured.discard([entry.slot.adapter for entry in group])
            for entry in group:
                entry.slot.begin_again()
        if is_out_of_memory(error):
            parts = _smaller(sizer, group)
        else:
            parts = [[entry] for entry in group] if len(group) > 1 else None
        if parts is None:
            return [(entry, error) for entry in group]
    meter_of(shared.base.device).empty()  # out here, where the failed pass's tensors are free
    return [outcome for part in parts for outcome in _gradients(shared, sizer, part, ranks)]


def captured_of(shared: SharedBase, group: Sequence[RunEntry]) -> CudaBackend | None:
    """Return the backend that computes and moves these runs in captured steps; None where none does."""
    backend = shared.backend
    if not isinstance(backend, CudaBackend) or any(e.num_processes > 1 for e in group):
        return None
    return backend if all(e.slot.can_be_captured for e in group) else None


def _add_pass(
    backend: CudaBackend, sizer: PassSizer, group: Sequence[RunEntry], work: Sequence[Work]
) -> None:
    """Let the backend compute a pass; its memory is measured the first time, when it is not yet a replay."""
    if any(entry.slot.is_ahead for entry in group):
        pairs = zip(group, work, strict=True)
        work = [own for entry, own in pairs if not entry.slot.is_ahead]
        group = [entry for entry in group if not entry.slot.is_ahead]
        if not group:
            return
    for entry in group:
        entry.slot.sit(backend)
    meter, wants = group[0].meter, sizer.wants_bytes(group)
    if wants:
        for entry in group:
            entry.keep_peak()
    begun = meter.begin_pass() if wants else 0
    is_replay = backend.add_pass(work)
    if wants:
        sizer.observe_bytes(group, meter.pass_bytes(begun, 0))
    if not is_replay:
        sizer.forget_timing(group)


def _move_seated(shared: SharedBase, entries: Sequence[RunEntry], *, goes_ahead: bool) -> None:
    """Let the backend move runs whose steps are complete; it leaves those alone that are not finite.

    What the device then does while the numbers are read and logged is the next step's first pass, where that
    is a replay. Of a run that turns out to have ended, it is lost with the seat.
    """
    if not entries:
        return
    assert isinstance(shared.backend, CudaBackend)
    numbers = shared.backend.update([entry.slot.next_step() for entry in entries])
    for entry in entries:
        entry.slot.prepare_next()  # while the device computes
    if goes_ahead:
        ahead = [work for entry in entries if (work := entry.slot.work_ahead()) is not None]
        if len(ahead) == len(entries) and shared.backend.replay(ahead):
            for entry in entries:
                entry.slot.is_ahead = True
    for entry, own in zip(entries, numbers, strict=True):
        entry.loss, entry.grad_norm = own.read()


def _smaller(sizer: PassSizer, group: list[RunEntry]) -> list[list[RunEntry]] | None:
    """Return the passes to try after one that has run out of memory; None where nothing is left to divide."""
    if len(group) > 1:
        half = sizer.ran_out(group)
        for entry in group:
            entry.note(f"out of memory with {len(group)} runs in a pass; went on with {half}")
        return [group[start : start + half] for start in range(0, len(group), half)]
    (entry,) = group
    rows = entry.slot.micro_batch_size
    if not entry.slot.shrink_micro_batch():
        return None
    entry.note(
        f"out of memory with a micro-batch of {rows} rows; went on with {entry.slot.micro_batch_size} "
        "(the same batch)"
    )
    return [group]


@contextmanager
def _counted(shared: SharedBase, sizer: PassSizer, group: Sequence[RunEntry]) -> Iterator[None]:
    """Measure the memory of the pass inside, where somebody wants to know it.

    A run's activations are what autograd saves; a pass also needs what is alive for a moment, which only
    the CUDA allocator tells.
    """
    first, meter = group[0], meter_of(shared.base.device)
    alone = len(group) == 1 and not first.shared_process and first.slot.counts_activations()
    if not alone and not sizer.wants_bytes(group):
        yield
        return
    for entry in group:
        entry.keep_peak()
    saved, begun = SavedBytes(shared.model), meter.begin_pass()
    with saved.counting():
        yield
    if alone:
        first.slot.count_activations(saved.total)
    if sizer.wants_bytes(group):
        sizer.observe_bytes(group, meter.pass_bytes(begun, saved.total))


def _read_numbers(entries: Sequence[RunEntry]) -> None:
    """Clip, and bring loss and gradient norm of all complete steps to the host in one transfer."""
    if not entries:
        return
    numbers = clip([entry.slot for entry in entries]).tolist()
    for entry, (loss, norm) in zip(entries, numbers, strict=True):
        entry.loss, entry.grad_norm = loss, norm
