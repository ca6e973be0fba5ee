"""What configurations cost: measured alone by the sweep, in every record, and all names in W&B's files."""

import pytest

from bench import wandb_sync
from bench.tracked import main as tracked_main
from bench.tracked import tracked
from harness.cli.main import dispatch
from harness.plan.probe import PROBE_STEPS
from harness.records.metrics import COHORT_SHARES
from harness.records.metrics_log import read_metrics
from harness.records.record import MeasuredIn
from harness.sweeping.state import SweepDirectory, read_state
from harness.tracking.wandb_file import read_wandb_run
from tests.sweeping.test_sweep import records_of, role
from tests.training.test_series import EVERY_STEP

COSTS = {
    "memory/peak_bytes",
    "throughput/step_ms",
    "throughput/input_tokens_per_second",
    "throughput/loss_tokens_per_second",
}


@pytest.mark.timeout(900)
def test_every_run_knows_what_its_configuration_costs_alone_and_wandb_has_every_name(ask):
    file = ask(
        space={"lora.rank": "choice(1,8)"},
        base=("tracker=wandb_offline", "eval.every_steps=4"),
        confirm={"top": 1, "seeds": [7]},
        search={"probe": True, "seeds": [0, 1]},
        resources={"devices": "cpu:2"},
    )
    assert dispatch(["sweep", str(file)]) == 0
    records = {record.run_id: record for record in records_of(file)}
    probes = {id: r for id, r in records.items() if r.measured_in is MeasuredIn.probe}
    assert len(probes) == 2  # seeds cost nothing
    runs = [record for record in records.values() if record.run_id not in probes]
    assert sorted(map(role, runs)) == ["confirmation"] + ["search"] * 4
    out = file.parent / "out"
    for device in read_state(
        SweepDirectory(out, "small")
    ).devices:  # what was decided for the runs, not for the probes after them
        assert device.packing not in ("", "one at a time")
    for record in runs:
        assert record.probe in probes
        probe = probes[record.probe]
        assert probe.config["lora"]["rank"] == record.config["lora"]["rank"]
        assert record.alone == {n: v for n, v in probe.metrics.items() if n in COHORT_SHARES}
        assert record.alone.keys() >= COSTS
        assert record.metrics.keys().isdisjoint(COSTS)  # its own were a process's

    for record in records.values():
        directory = out / "runs" / record.run_id
        rows = read_metrics(directory / "metrics.jsonl").rows
        mirrored = read_wandb_run(directory)
        assert mirrored.problems == []
        assert mirrored.history == rows
        for name in EVERY_STEP:
            assert all(name in row for row in rows), (record.run_id, name)
            values = [row[name] for row in rows]
            found = mirrored.summary[name]
            assert (found["min"], found["max"], found["last"]) == (
                min(values),  # pyright: ignore[reportArgumentType]
                max(values),  # pyright: ignore[reportArgumentType]
                values[-1],
            )
        assert ("eval/loss" in rows[-1]) == (mirrored.summary.get("eval/loss") is not None)
    for probe in probes.values():
        assert len(read_metrics(out / "runs" / probe.run_id / "metrics.jsonl").rows) >= PROBE_STEPS
    for record in runs:  # the confirmation's mirror has the costs already
        summary = read_wandb_run(out / "runs" / record.run_id).summary
        assert (summary["record"]["probe"] is not None) == (role(record) == "confirmation")

    found = tracked(out, "small")
    assert sorted(run.role for run in found) == ["confirmation"] + ["probe"] * 2 + ["search"] * 4
    assert [list(run.missing()) for run in found] == [[]] * 7
    assert tracked_main(["small", f"paths.out={out}"]) == 0
    assert wandb_sync.main(["small", f"paths.out={out}"]) == 0  # wandb reads its files the same
    metrics = out / "runs" / found[0].run_id / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text().replace('"memory/peak_bytes"', '"memory/load_peak_bytes"')
    )
    assert list(tracked(out, "small")[0].missing()) == [("record: series", "memory/peak_bytes")]
    assert tracked_main(["small", f"paths.out={out}"]) == 1

    own = read_wandb_run(out / "sweeps" / "small")
    assert own.run_id == "sweep-small"
    assert [row["best.eval/loss"] for row in own.history] == sorted(
        (row["best.eval/loss"] for row in own.history), reverse=True
    )
    assert len(own.history) == 2
    files = out / "sweeps" / "small" / "wandb"
    assert {path.name.partition("_")[0] for path in files.rglob("*.table.json")} == {
        *("leaderboard", "confirmation", "metrics")
    }
