"""A small sweep, trained once, whose files are damaged again and again; the table of what held."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tally import Tally
from tests.sweeping.conftest import ask, world

__all__ = ["ask", "world"]


@pytest.fixture
def tally(record_property) -> Callable[[str], AbstractContextManager[Tally]]:
    """Count the tries of one kind; a kind of which one try does not hold has failed."""

    @contextmanager
    def counting(kind: str) -> Iterator[Tally]:
        row = Tally(kind)
        yield row
        record_property("fault", row.row)
        assert not row.failures, f"{len(row.failures)} of {row.tried}: {row.failures[:5]}"

    return counting


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table: tried, held, first failure."""
    rows: dict[str, list[Any]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, row in getattr(report, "user_properties", ()):
                if name == "fault" and getattr(report, "when", "") == "call":
                    known = rows.setdefault(row[0], [0, 0, ""])
                    known[0] += row[1]
                    known[1] += row[2]
                    known[2] = known[2] or row[3]
    if not rows:
        return
    width = max(map(len, rows))
    terminalreporter.write_line(f"\n{'fault':<{width}}  tried   held  first failure")
    for kind, (tried, held, first) in sorted(rows.items()):
        terminalreporter.write_line(f"{kind:<{width}}  {tried:>5}  {held:>5}  {first or '–'}")
    tried, held = (sum(row[at] for row in rows.values()) for at in (0, 1))
    terminalreporter.write_line(f"{'all':<{width}}  {tried:>5}  {held:>5}")


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
