"""A small sweep, trained once, whose files are damaged again and again; the table of what held."""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tally import Row, Tally, as_markdown, as_text, merged, write_into
from tests.sweeping.conftest import ask, world

__all__ = ["ask", "world"]
BEGAN = time.monotonic()


@pytest.fixture
def tally(record_property) -> Callable[[str], AbstractContextManager[Tally]]:
    """Count the tries of one kind; a kind of which one try does not hold has failed."""

    @contextmanager
    def counting(kind: str) -> Iterator[Tally]:
        row = Tally(kind)
        try:
            yield row
        finally:
            record_property("fault", row.row)
            _keep(row)
        assert not row.failures, f"{len(row.failures)} of {row.tried}: {row.failures[:5]}"

    return counting


def _keep(row: Tally) -> None:
    """Append a row to the file that FAULTS_ROWS names, so that a run that is stopped has said something."""
    file = os.environ.get("FAULTS_ROWS")
    if file:
        with Path(file).open("a", encoding="utf-8") as rows:
            rows.write(json.dumps([*row.row, row.failures[:20]]) + "\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table, and write it into the document that FAULTS_TABLE names."""
    rows: list[Row] = []
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            found = [row for name, row in getattr(report, "user_properties", ()) if name == "fault"]
            if getattr(report, "when", "") == "call":
                rows += found
            if outcome == "skipped":
                reason = str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else "")
                kind = report.nodeid.rpartition("::")[2].removeprefix("test_")
                rows.append((kind, 0, 0, f"not tried here: {reason}", 0.0))
            elif outcome in ("failed", "error") and not any(row[3] for row in found):
                kind = report.nodeid.rpartition("::")[2].removeprefix("test_")
                last = str(report.longreprtext).strip().splitlines()[-1:]
                rows.append((kind, 1, 0, "".join(last)[:300], 0.0))
    if not rows:
        return
    table = merged(rows)
    terminalreporter.write_line(f"\n{as_text(table)}")
    document = os.environ.get("FAULTS_TABLE")
    if document:
        minutes = (time.monotonic() - BEGAN) / 60
        said = f"{_where()}; {minutes:.0f} minutes.\n\n{as_markdown(table)}"
        write_into(Path(document), said)


def _where() -> str:
    """Say when and on what the table was made."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{date.today()}, {cores} cores of {platform.machine()}, Python {platform.python_version()}"
    )


@pytest.fixture(scope="session")
def trained(world, tmp_path_factory) -> tuple[Path, Path]:
    """A finished sweep's file and `paths.out`; never to be changed."""
    import yaml

    from harness.cli.main import dispatch

    root = tmp_path_factory.mktemp("trained")
    base = [
        *(f"model={world / 'tiny'}", "data=pairs", f"data.path={world / 'sums.jsonl'}"),
        *("data.validation_rows=8", "data.test_rows=8", "data.max_length=64", "eval=loss"),
        *("optim.steps=3", "optim.batch_size=4", "tracker=none", "quant=nf4"),
        f"paths.out={root / 'out'}",
    ]
    file = root / "small.yaml"
    tree = {"question": "Does it hold?", "base": base, "space": {"lora.rank": "choice(1,2)"}}
    file.write_text(yaml.safe_dump(tree | {"resources": {"devices": "cpu"}}))
    assert dispatch(["sweep", str(file)]) == 0
    return file, root / "out"


@pytest.fixture
def out(trained, tmp_path) -> Path:
    """A copy of the sweep's `paths.out`, to be damaged."""
    copy = tmp_path / "out"
    shutil.copytree(trained[1], copy)
    return copy
