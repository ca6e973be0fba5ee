"""What a project online answers, asked through a client that holds its runs; and what answers lie offline."""

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.wandb_runs import WandbFiles, WandbProject
from harness.errors import RequestError
from harness.records.record import RunStatus, record_tree
from tests.analysis.records_for_tables import Run


class Summary:
    """A summary as the client gives it: it has items, as its trees have, and is no dict."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree = tree

    def items(self) -> list[tuple[str, Any]]:
        return [(k, Summary(v) if isinstance(v, dict) else v) for k, v in self._tree.items()]


@dataclass
class File:
    """A file of a run, kept at a place."""

    name: str
    text: str
    place: Path

    @contextmanager
    def download(self, root: str):
        path = Path(root, "table.json")
        path.write_text(self.text)
        with path.open() as stream:
            yield stream


@dataclass
class Held:
    """A run of a project."""

    id: str
    config: dict[str, Any] = field(default_factory=dict)
    tree: dict[str, Any] = field(default_factory=dict)
    history: Sequence[dict[str, Any]] = ()
    tables: dict[str, str] = field(default_factory=dict)
    group: str | None = None

    @property
    def summary(self) -> Summary:
        return Summary({"_wandb": {"runtime": 3}} | self.tree)

    def scan_history(self) -> list[dict[str, Any]]:
        if not self.history:
            raise ConnectionError("gone")
        return [dict(row) for row in self.history]

    def files(self, pattern: str) -> list[File]:
        assert pattern == "media/table/samples_%"
        if "gone" in self.tables:
            raise ConnectionError("gone")
        return [File(name, text, Path()) for name, text in self.tables.items()]


@dataclass
class Client:
    """The part of the public API that a report asks."""

    held: list[Held]
    error: str = ""

    def runs(self, path: str, *, filters: dict[str, str], order: str, lazy: bool) -> list[Held]:
        assert (path, order, lazy) == ("me/qlora", "+created_at", False)
        if self.error:
            raise ConnectionError(self.error)
        return [each for each in self.held if filters.get("group", each.group) == each.group]


def project(*held: Held, error: str = "") -> WandbProject:
    made = WandbProject("me/qlora", Path("out"))
    made.__dict__["_api"] = Client(list(held), error)
    return made


def held(run_id: str, loss: float, **more: Any) -> Held:
    tree = record_tree(Run(run_id=run_id, loss=loss, **more).record())
    return Held(run_id, config=tree.pop("config"), tree={"record": tree, "status": "completed"})


def test_a_project_s_runs_are_rows_by_run_id_and_a_sweep_s_own_run_is_none() -> None:
    found, problems = project(held("b", 2.0), Held("sweep-small"), held("a", 1.0)).runs()
    assert [(row["run_id"], row["after.eval/loss"]) for row in found] == [("a", 1.0), ("b", 2.0)]
    assert [row["lora.rank"] for row in found] == [8, 8]
    assert problems == []
    killed, _ = project(Held("c", config={"seed": 3})).runs()
    assert [(row["status"], row["seed"]) for row in killed] == [(RunStatus.interrupted, 3)]


def test_what_a_project_lacks_or_holds_damaged_is_said() -> None:
    with pytest.raises(RequestError, match="W&B project me/qlora has no run"):
        project().runs()
    with pytest.raises(RequestError, match="me/qlora cannot be read: no route"):
        project(error="no route").runs()
    old = held("old", 1.0)
    old.tree["record"]["schema_version"] = 0
    found, problems = project(old, held("new", 1.0)).runs()
    assert [row["run_id"] for row in found] == ["new"]
    assert problems == ["old has schema_version 0; this harness reads 1; left out"]
    assert project(old).runs()[0] == [], (
        "one that cannot be used is said, and not that there is none"
    )
    unlike, named = project(held("a", 1.0), held("a", 2.0)).runs()
    assert unlike == []
    assert named[0].startswith("2 records have the run id a and different results")


STATE: dict[str, Any] = {
    "name": "small",
    "question": "Which?",
    "expect": "Eight.",
    "method": "grid",
    "objectives": {"eval/loss": "minimize"},
    "trials": [
        {"number": 0, "point": {"lora.rank": "8"}, "runs": ["a", "lost"], "status": "completed"}
    ],
    "confirmed": [],
    "runs": [{"run_id": "lost", "role": "search", "status": "completed"}],
}


def of_sweep(*others: Held) -> WandbProject:
    own = Held("sweep-small", config={"space": {"lora.rank": "choice(8)"}}, tree={"state": STATE})
    return project(*(Held(h.id, h.config, h.tree, group="small") for h in (own, *others)))


def test_a_sweep_is_made_of_its_own_run_and_of_those_of_its_group() -> None:
    sweep = of_sweep(held("a", 1.0), held("beside", 9.0)).sweep("small")
    assert [(row["run_id"], row["role"], row["trial"]) for row in sweep.rows] == [
        ("a", "search", 0)
    ]
    assert sweep.axes == ("lora.rank",)
    assert sweep.directory == Path("out/sweeps/small")
    assert sweep.problems == ["run lost has no record"]
    assert sweep.asked == {"space": {"lora.rank": "choice(8)"}}


def test_a_sweep_that_is_not_there_or_has_not_ended_is_refused() -> None:
    names = "has no W&B run of a sweep smal; near names: small; there are: small"
    with pytest.raises(RequestError, match=names):
        of_sweep().sweep("smal")
    with pytest.raises(RequestError, match="sweep small; there are: none"):
        project(held("a", 1.0)).sweep("small")
    with pytest.raises(RequestError, match="sweep small has no state: it has not ended yet"):
        project(Held("sweep-small", group="small")).sweep("small")


def test_curves_are_of_every_row_by_its_step() -> None:
    rows = [
        {"_step": 1, "train/loss": 3.0},
        {"_step": 2, "eval/loss": 2.0},
        {"_step": 4, "train/loss": 1.0},
    ]
    source = project(Held("a", history=rows), Held("b"))
    assert source.histories(["a"], ["train/loss"]) == {}, "no page has been read"
    source.runs()
    found = source.histories(iter(["a", "other", "a"]), iter(["train/loss"]))
    assert found.keys() == {"a"}
    steps, values = found["a"].curves["train/loss"]
    assert (steps.tolist(), values.tolist()) == ([1.0, 4.0], [3.0, 1.0])
    assert found["a"].curves.keys() == {"train/loss"}
    assert found["a"].num_damaged_lines == 0
    assert np.dtype(steps.dtype).kind == "f"
    with pytest.raises(RequestError, match="the history of W&B run b cannot be read: gone"):
        source.histories(["b"], ["train/loss"])


def table(*lines: list[str]) -> str:
    return json.dumps({"columns": ["prompt"], "data": list(lines)})


def test_answers_are_those_of_the_newest_table() -> None:
    tables = {
        "media/table/samples_10_x": table(["p", "r", "b", "new"]),
        "media/table/samples_02_x": table(["p", "r", "b", "old"]),
    }
    source = project(Held("a", tables=tables), Held("b"), Held("c", tables={"gone": ""}))
    source.runs()
    assert source.samples("a") == [["p", "r", "b", "new"]]
    assert source.samples("b") == []
    with pytest.raises(RequestError, match="the answers of W&B run c cannot be read: gone"):
        source.samples("c")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (table(["p", "r"]), [["p", "r"]]),
        (table(), []),
        ("[1]", []),
        ("{", []),
        ('{"data": [[1]]}', []),
        ('{"columns": []}', []),
    ],
)
def test_answers_lie_beside_the_newest_offline_file_and_damage_is_none(
    tmp_path: Path, text: str, rows: list[list[str]]
) -> None:
    for place, kept in (("x", table(["old", "old"])), ("y", text)):
        directory = tmp_path / place / "files" / "media" / "table"
        directory.mkdir(parents=True)
        (tmp_path / place / "run-a.wandb").write_bytes(b"")
        number = 1 if place == "x" else 2
        (directory / f"samples_{number}_h.table.json").write_text(kept)
        (directory / "other_9_h.table.json").write_text(table(["other", "other"]))
    source = WandbFiles(tmp_path)
    assert source.samples("a") == rows
    assert source.samples("b") == []
    assert source.histories(["b"], ["train/loss"]) == {}
    assert source._files.keys() == {"a"}
    assert len(source._files["a"]) == 2


def test_a_file_of_nothing_is_a_run_that_is_said_and_no_row(tmp_path: Path) -> None:
    (tmp_path / "run-a.wandb").write_bytes(b"")
    (tmp_path / "run-sweep-small.wandb").write_bytes(b"")
    found, problems = WandbFiles(tmp_path).runs()
    assert found == []
    assert len(problems) == 1
    assert "run-a.wandb" in problems[0]
    with pytest.raises(RequestError, match="sweep other; there are: small"):
        WandbFiles(tmp_path).sweep("other")
