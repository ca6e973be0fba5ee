"""The import rules of the design: imports point one way, and readers of records load nothing heavy."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "wandb", "peft", "bitsandbytes", "datasets")

# From top to bottom: a module may import from its own layer and from those below it.
LAYERS = (
    ("__main__", "run"),
    ("cli", "api"),
    ("commands",),
    ("launch",),
    ("sweeping", "parallel"),
    ("export",),
    ("training",),
    ("study", "plan"),
    ("question",),
    ("request",),
    ("evals",),
    ("engine",),
    ("measure", "tracking"),
    ("base", "data", "records"),
    ("config",),
    ("embedded", "parsing"),
    ("errors",),
)
MAY_ANALYSE = ("commands", "api")
ANALYSIS_MAY = (
    "harness.config.storage",
    "harness.config.later",
    "harness.plan.probe",  # which settings cost nothing stands beside the probe that sets them aside
    "harness.records.columns",
    "harness.records.record",
    "harness.records.metrics",
    "harness.records.answers",
    "harness.records.scores",
    "harness.errors",
    "harness.parsing",
    "harness.records.redact",
    "harness.sweeping.state",
    "harness.tracking.wandb_file",
    # What a question compares stands in one place; neither torch nor Optuna is behind it.
    *(
        f"harness.question.{name}"
        for name in ("axes", "compare", "entries", "points", "power", "rate_law")
    ),
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
MODULES = sorted((ROOT / "harness").rglob("*.py"))
ANALYSIS = sorted((ROOT / "analysis").rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield every module that `file` imports at run time, wherever the import stands."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(inner for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or "", node


def part_of(module: str) -> str:
    """Return the part of the harness that a dotted module name belongs to."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_harness_imports_from_its_own_layer_or_below(file):
    own = part_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    if own == "__init__":
        return
    for module, _ in imported(file):
        assert own in MAY_ANALYSE or module.split(".")[0] != "analysis", f"{file} imports {module}"
        part = part_of(module)
        if module.split(".")[0] == "harness" and part:
            assert RANK[part] >= RANK[own], f"{own} must not import {module}"


@pytest.mark.parametrize("file", ANALYSIS, ids=lambda file: str(file.relative_to(ROOT)))
def test_analysis_reads_only_records_and_metrics(file):
    for module, _ in imported(file):
        if module.split(".")[0] == "harness":
            assert module in ANALYSIS_MAY, f"{file} imports {module}"
        online = file.name == "wandb_runs.py" and module.split(".")[0] == "wandb"  # when asked for
        assert online or module.split(".")[0] not in HEAVY


def module_name(file: Path) -> str:
    """Return the dotted name under which a file is imported."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def edges(files: Iterable[Path]) -> dict[str, set[str]]:
    """Return for each module the modules among `files` that it imports, wherever the import stands."""
    names = {module_name(file) for file in files}
    found: dict[str, set[str]] = {name: set() for name in names}
    for file in files:
        for module, node in imported(file):
            inside = getattr(node, "names", ()) if isinstance(node, ast.ImportFrom) else ()
            submodules = {f"{module}.{alias.name}" for alias in inside} & names
            found[module_name(file)] |= (submodules or {module} & names) - {module_name(file)}
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that reach each other (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = lowest[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[-len(group) :]
            found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return [group for group in found if len(group) > 1]


def rooms(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the same between rooms (the folders of the harness, and files at its top)."""
    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        own = part_of(name)
        found.setdefault(own, set()).update({part_of(other) for other in others} - {own})
    return {own: {other for other in others if other in found} for own, others in found.items()}


def test_a_circle_is_found_where_there_is_one():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set()}
    assert circles(graph) == [["a", "b", "c"]]
    assert circles({**graph, "c": set()}) == []


INSIDE = [file for file in MODULES if file != ROOT / "harness" / "__init__.py"]
"""Without the front door, which loads `harness.api` when one of its names is used."""


@pytest.mark.parametrize("files", [INSIDE, ANALYSIS], ids=["harness", "analysis"])
def test_no_modules_import_each_other_in_a_circle(files):
    assert circles(edges(files)) == []


def test_no_rooms_import_each_other_in_a_circle():
    assert circles(rooms(edges(INSIDE))) == []


@pytest.mark.parametrize("part", sorted(RANK))
def test_every_layer_names_parts_that_exist(part):
    path = ROOT / "harness" / part
    assert path.is_dir() or path.with_suffix(".py").is_file()


def test_readers_and_the_way_to_a_refusal_load_nothing_heavy():
    analysis = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in ANALYSIS]
    light = [
        *(
            "harness.config.schema",
            "harness.records.record",
            "harness.records.metrics",
            "harness.cli.main",
            "harness.config.compose",
        ),
        *(
            "harness.config.validate",
            "harness.config.identity",
            "harness.commands.run",
            "harness.commands.console",
        ),
        *("harness.commands.sweep", "harness.commands.status", "harness.sweeping.driver"),
        "harness.api",
        *("harness.commands.help", "harness.data.check", "harness.base.source"),
        *("harness.launch.job", "harness.launch.submit", "harness.launch.jobs"),
        *(name.removesuffix(".__init__") for name in analysis),
    ]
    code = (
        "import importlib, json, sys\n"
        f"for name in {light!r}: importlib.import_module(name)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == []
