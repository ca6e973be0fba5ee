"""One report of three sources: records, offline files that wandb wrote, a server that wandb.Api asks."""

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.sources import Records
from analysis.wandb_runs import WandbFiles, WandbProject
from harness.cli.main import dispatch
from harness.config.schema import TrackerConfig, TrackerName
from harness.records.record import RunDirectory, RunStatus, read_metrics, read_record, record_tree
from harness.records.scores import RowScores, keep_scores, read_scores, scores_tree
from harness.sweeping.state import SweepDirectory, read_state, state_tree
from harness.tracking import open_tracker
from harness.tracking.sweep_mirror import SweepResult, mirror_sweep
from tests.analysis.test_report import of_one_rank, save_sweep
from tests.tracking.wandb_server import KEY, HeldRun, StandIn, serving

OFFLINE = TrackerConfig(name=TrackerName.wandb_offline, group="small")


def report(out: Path, source: str, *words: str, **environment: str) -> Path:
    """Let the command write the report of the sweep; return its directory."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        for name in [name for name in os.environ if "WANDB" in name]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        assert dispatch(["report", "small", f"paths.out={out}", *words, "--source", source]) == 0
    answer, page = said.getvalue().splitlines()
    assert answer.startswith("Found: ")
    return Path(page.split("  ")[0]).parent


def files_of(directory: Path) -> dict[str, bytes]:
    """Return every table and figure of a report."""
    kept = [p for kind in ("tables", "figures") for p in (directory / kind).iterdir()]
    return {path.name: path.read_bytes() for path in kept}


def finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"_step" if k == "step" else k: v for k, v in row.items()} for row in rows]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished sweep on disk."""
    out = tmp_path_factory.mktemp("small") / "out"
    save_sweep(out, of_one_rank())
    for number, run in enumerate(runs_of(out)):
        if read_record(run.record).provenance["sweep"]["role"] == "confirmation":
            matches = tuple(float(row < 5 + number) for row in range(20))
            keep_scores(run.scores, "after", {"eval/exact_match": scored(matches)})
    return out


def scored(sums: tuple[float, ...]) -> RowScores:
    return RowScores(rows=tuple(range(len(sums))), sums=sums, weights=(1,) * len(sums))


@pytest.fixture(scope="module")
def of_records(out: Path) -> dict[str, bytes]:
    found = files_of(report(out, "records"))
    assert {"search_eval_loss_over_rank.pdf", "curves_train_loss.png"} <= found.keys()
    return found


def asked(out: Path) -> dict[str, Any]:
    return yaml.safe_load(SweepDirectory(out, "small").question.read_text())


def runs_of(out: Path) -> Iterator[RunDirectory]:
    yield from map(RunDirectory, sorted((out / "runs").iterdir()))


Rows = tuple[list[dict[str, Any]], list[str]]


def by_id(row: dict[str, Any]) -> str:
    return row["run_id"]


def assert_same_rows(found: Rows, expected: Rows) -> None:
    assert expected[0]
    assert sorted(found[0], key=by_id) == sorted(expected[0], key=by_id)
    assert found[1] == expected[1] == []


def test_offline_files_alone_give_the_same_tables_and_figures(
    out: Path, of_records: dict[str, bytes], tmp_path: Path
) -> None:
    # Nothing but .wandb files, and not where the harness puts them.
    for number, run in enumerate(runs_of(out)):
        record = read_record(run.record)
        directory = tmp_path / "copied" / str(number)
        directory.mkdir(parents=True)
        tracker = open_tracker(
            OFFLINE, run_id=record.run_id, directory=directory, config_tree=record.config
        )
        for row in read_metrics(run.metrics).rows:
            step = int(row.pop("step") or 0)
            tracker.log(step, row)
        assert tracker.finish(record, [], read_scores(run.scores, "after")) == []
    result = SweepResult(
        name="small",
        asked=asked(out),
        state=state_tree(read_state(SweepDirectory(out, "small"))),
        trials=[],
        tables={},
        report=None,
    )
    assert mirror_sweep(OFFLINE, tmp_path / "copied", result) == []
    assert files_of(report(tmp_path, "wandb-offline")) == of_records
    assert_same_rows(WandbFiles(tmp_path).runs(), Records(out).runs())


def test_a_project_online_gives_the_same_tables_and_figures(
    out: Path, of_records: dict[str, bytes], tmp_path: Path
) -> None:
    held = []
    for run in runs_of(out):
        record = read_record(run.record)
        tree = record_tree(record)
        config = tree.pop("config")
        scores = scores_tree(read_scores(run.scores, "after"))
        summary = {"status": record.status.value, "record": tree, "scores": scores}
        rows = finite(read_metrics(run.metrics).rows)
        held.append(
            HeldRun(
                run_id=record.run_id, group="small", config=config, summary=summary, history=rows
            )
        )
    state = state_tree(read_state(SweepDirectory(out, "small")))
    held += [
        HeldRun(
            run_id="sweep-small",
            group="small",
            config=asked(out),
            summary={"state": state},
            history=[],
        ),
        HeldRun(run_id="other", group=None, config={}, summary={}, history=[]),
    ]
    server = StandIn(held)
    with serving(server) as url:
        found = report(
            tmp_path,
            "wandb",
            *("tracker.entity=me", "tracker.project=qlora"),
            WANDB_BASE_URL=url,
            WANDB_API_KEY=KEY,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_BASE_URL", url)
            patch.setenv("WANDB_API_KEY", KEY)
            patch.delenv("WANDB_MODE")
            rows, problems = WandbProject("me/qlora", tmp_path).runs()
    assert files_of(found) == of_records
    assert "HistoryPage" in server.asked  # the curves came from there, too
    assert found.name == "report_wandb"
    (other,) = [row for row in rows if row["run_id"] == "other"]
    assert other["status"] is RunStatus.interrupted, "W&B has no record of it"
    rows.remove(other)
    assert_same_rows((rows, problems), Records(out).runs())


def test_a_source_that_lacks_the_sweep_says_what_it_has(out: Path, tmp_path: Path) -> None:
    from harness.commands.report import source_of
    from harness.errors import RequestError

    with pytest.raises(RequestError, match=f"no .wandb file under {tmp_path}"):
        WandbFiles(tmp_path).sweep("small")
    (tmp_path / "run-sweep-rank.wandb").write_bytes(b"")
    with pytest.raises(RequestError, match="no W&B run of a sweep small; there are: rank"):
        WandbFiles(tmp_path).sweep("small")
    with pytest.raises(RequestError, match=r"records, wandb-offline, wandb, got wandb-ofline"):
        source_of("wandb-ofline")
