"""What one run writes down of itself: when it is due, what a step is at least, time, energy and remarks."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config.schema import CheckpointConfig
from harness.data.prepare import PreparedData
from harness.engine.shared_base import SharedBase
from harness.evals.base_domain import BITS, FORGETTING
from harness.evals.evaluate import Results
from harness.measure.floor import Floor, StepSize
from harness.records.record import RunStatus
from harness.records.scores import RowScores, keep_scores
from harness.training import entry as entry_module
from harness.training.entry import RunEntry
from harness.training.loss_scale import LossScale
from tests.training.conftest import MakeBase, MakeJob

MakeEntry = Callable[..., RunEntry]


@pytest.fixture(scope="module")
def shared(make_base: MakeBase) -> SharedBase:
    return make_base()


@pytest.fixture
def make_entry(shared: SharedBase, make_job: MakeJob) -> MakeEntry:
    """Return a function that starts a run whose settings are given as `make_job` takes them."""

    def make(**sections: Any) -> RunEntry:
        entry = RunEntry(make_job(shared, "run", **sections), shared)
        entry.start()
        return entry

    return make


def due(entry: RunEntry, asks: Callable[[], bool], steps: int) -> list[int]:
    """Return the steps of a run after which it says so."""
    found = []
    for step in range(1, steps + 1):
        entry.slot.progress.step = step
        found += [step] if asks() else []
    return found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, []),
        ({"every_steps": 4}, [4, 8, 12, 16]),
        ({"every_epochs": 0.5}, [6, 11, 17]),  # 11 steps of 4 see 44 rows
        ({"every_steps": 4, "keep_best": True}, [4, 8, 12, 16, 17]),  # the last may be the best
        ({"keep_best": False, "every_steps": 18}, []),
    ],
)
def test_the_loss_is_evaluated_at_the_ends_that_were_asked_for(
    make_entry: MakeEntry, asked: dict[str, Any], expected: list[int]
) -> None:
    entry = make_entry(optim={"steps": 17}, eval=asked)
    assert len(entry.job.data.train) == 44
    assert due(entry, entry.evaluation_is_due, 17) == expected


class Watch:
    """A clock that is put forward by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        time = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(entry_module, "time", time)


def test_checkpoints_are_due_by_steps_by_epochs_or_by_the_seconds_since_the_last(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    steps = make_entry(checkpoint=CheckpointConfig(every_steps=3, every_seconds=None))
    assert due(steps, steps.checkpoint_is_due, 7) == [3, 6]
    epochs = make_entry(checkpoint=CheckpointConfig(every_epochs=1.0, every_seconds=None))
    assert due(epochs, epochs.checkpoint_is_due, 12) == [11]
    seconds = make_entry(checkpoint=CheckpointConfig(every_seconds=5.0))
    watch.now += 4.5
    assert not seconds.checkpoint_is_due()
    watch.now += 0.5
    assert seconds.checkpoint_is_due()
    seconds.save_checkpoint()
    assert not seconds.checkpoint_is_due()
    watch.now += 5.0
    assert seconds.checkpoint_is_due()


def test_time_is_that_of_all_processes_in_which_a_run_was_trained(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    first = make_entry()
    watch.now += 30.0
    first.save_checkpoint()
    watch.now += 100.0  # after the checkpoint nothing was kept
    second = make_entry()
    watch.now += 4.0
    record = second.finish(RunStatus.interrupted, "stopped")
    assert record.wall_seconds == 34.0
    assert record.notes.count("resumed after step 0") == 1


# What a step costs at least ----------------------------------------------------------------------


def floors(monkeypatch: pytest.MonkeyPatch, *milliseconds: float) -> list[Any]:
    """Let the floor of a step be these in turn; returns what will have been asked."""
    asked: list[Any] = []
    given = iter(milliseconds)

    def floor(base: Any, rates: Any, step: StepSize, **more: Any) -> Floor:
        asked.append((step, more))
        return Floor(products_ms=next(given), decoding_ms=0.0)

    monkeypatch.setattr(entry_module, "step_floor", floor)
    rates = SimpleNamespace(measure_again=lambda: asked.append("again"))
    monkeypatch.setattr(entry_module, "rates_of", lambda *_: rates)
    return asked


def test_the_floor_is_that_of_a_mean_micro_batch_and_measured_again_where_a_step_was_quicker(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry(optim={"batch_size": 6, "micro_batch_size": 2})
    asked = floors(monkeypatch, 60.0, 40.0, 50.0, 60.0)
    assert entry._floor_ms() is None  # no step was made
    assert asked == []
    entry.slot.clock.add(0.05, input_tokens=300, loss_tokens=90)
    entry.slot.clock.add(0.08, input_tokens=360, loss_tokens=120)
    expected = StepSize(micro_batches=3, input_tokens=660 / 6, loss_tokens=210 / 6)
    decodes = entry.shared.backend.name.value != "cpu"
    known = (expected, {"decodes": decodes, "trains_all": False})
    assert entry._floor_ms() == 40.0
    assert asked == [known, "again", known]
    assert entry._floor_ms() == 50.0  # no quicker than the quickest step
    assert asked[3:] == [known]
    entry.shared_process = True  # its steps were those of several runs
    assert entry._floor_ms() == 60.0
    assert asked[4:] == [known]


def test_several_processes_divide_a_micro_batch(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry(optim={"batch_size": 4})
    entry.num_processes = 2
    asked = floors(monkeypatch, 1.0)
    entry.slot.clock.add(0.05, input_tokens=300, loss_tokens=90)
    entry._floor_ms()
    assert asked[0][0] == StepSize(micro_batches=1, input_tokens=150, loss_tokens=45)


def test_what_cannot_be_told_costs_the_run_a_remark_and_nothing_else(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry()
    floors(monkeypatch)
    monkeypatch.setattr(entry_module, "step_floor", failing)
    monkeypatch.setattr(entry_module, "predicted_run", failing)
    entry.slot.clock.add(0.05, input_tokens=300, loss_tokens=90)
    assert entry._floor_ms() is None
    assert entry.predicted_pass_bytes() == 0
    assert entry._prediction() is None
    assert entry.job.notes == [
        "the floor of its step is not known: ValueError: no idea",
        "its cost could not be predicted: ValueError: no idea",  # once
    ]


def failing(*_: Any, **__: Any) -> Any:
    raise ValueError("no idea")


@pytest.mark.parametrize(("device", "expected"), [("cpu", 700), ("cuda", 735)])
def test_a_pass_needs_its_activations_and_on_a_gpu_what_is_there_for_a_moment(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch, device: str, expected: int
) -> None:
    prediction = SimpleNamespace(device=device, transient_bytes=35, parts={"activation": 700})
    asked: list[int] = []

    def predicted(source: Any, config: Any, rows: PreparedData, steps: int) -> Any:
        asked.append(steps)
        return prediction

    monkeypatch.setattr(entry_module, "predicted_run", predicted)
    assert make_entry(optim={"steps": 9}).predicted_pass_bytes() == expected
    assert asked == [9]


def test_energy_is_told_by_the_step(make_entry: MakeEntry) -> None:
    entry = make_entry()
    assert "device/step_joules" not in entry._of_device()
    entry.costs.joules = 30.0
    for _ in range(4):
        entry.slot.clock.add(0.05, input_tokens=300, loss_tokens=90)
    assert entry._of_device()["device/step_joules"] == 7.5


def test_what_lasts_is_adapter_gradient_and_optimizer_as_soon_as_it_has_a_state(
    shared: SharedBase, make_entry: MakeEntry, make_job: MakeJob
) -> None:
    entry = make_entry()
    parameters = entry.slot.adapter.num_parameters
    assert entry.lasting_bytes == 8 * parameters
    state = entry.slot.optimizer.optimizer.state
    state[entry.slot.optimizer._parameters[0]] = {"mean": entry.slot.adapter.flat_P.clone()}
    assert entry.lasting_bytes == 12 * parameters
    assert RunEntry(make_job(shared, "other"), shared).lasting_bytes == 0  # before its start


def test_steps_left_out_in_float16_are_told_at_the_end(make_entry: MakeEntry) -> None:
    entry = make_entry()
    entry.slot.progress.step = 10
    entry.slot.progress.loss_scale = LossScale(value=4096.0)
    entry._tell_skipped(entry.slot.progress)
    assert entry.job.notes == []
    entry.slot.progress.loss_scale.skipped_steps = 3
    record = entry.finish(RunStatus.interrupted, "stopped")
    assert record.notes == [
        "float16: 3 of 10 steps were left out, since their gradients overflowed; "
        "the loss scale ended at 4096"
    ]


def test_peaks_of_phases_are_apart_and_in_company_nobodys(
    make_entry: MakeEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry()
    readings = iter([500, 800, 300, 900, 400, 700])
    began: list[str] = []
    entry.meter = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        read=lambda: next(readings),
        begin=lambda: began.append("begun"),
        training_peak=lambda peak, total: (peak, total),
        process_peak=lambda peak: peak,
    )
    for _ in range(2):
        with entry.phase_peak():
            pass
    assert began == ["begun"] * 4
    parts: dict[str, float | None] = {"base": 30.0, "adapter": 4.0}
    found = entry._peaks(parts)
    assert found["memory/peak_bytes"] == (500, 34)
    assert found["memory/eval_peak_bytes"] == 900
    assert found["memory/process_peak_bytes"] == 500
    assert entry._peaks(parts | {"activation": None})["memory/peak_bytes"] == (700, None)
    entry.shared_process = True
    with entry.phase_peak():
        pass
    assert began == ["begun"] * 4


def bits(*of_documents: float, weights: tuple[int, ...] = (8, 4)) -> RowScores:
    return RowScores(rows=(0, 1), sums=of_documents, weights=weights)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (bits(16.0, 8.0), bits(20.0, 9.0), 5 / 12),  # five bits more in twelve bytes
        (bits(16.0, 8.0), bits(20.0, 9.0, weights=(8, 5)), None),
        (None, bits(20.0, 9.0), None),
        (bits(16.0, 8.0), None, None),
    ],
)
def test_what_was_forgotten_is_what_the_bases_own_texts_cost_more(
    make_entry: MakeEntry, before: RowScores | None, after: RowScores | None, expected: float | None
) -> None:
    entry = make_entry()
    keep_scores(entry.job.directory.scores, "before", {} if before is None else {BITS: before})
    results = Results({})
    results.scores |= {} if after is None else {BITS: after}
    entry.tell_forgetting(results)
    if expected is None:
        assert results == {}
    else:
        assert results[FORGETTING].value == pytest.approx(expected)
        assert results.scores[FORGETTING].sums == (4.0, 1.0)
