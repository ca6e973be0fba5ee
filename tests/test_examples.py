"""The examples run as they are, outside the checkout, and come to what they say."""

import ast
import json
from pathlib import Path

import pytest

from tests.commands.forked import Command

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHORT = ("tracker=none", "eval=loss", "resources.devices=cpu", "search.probe=false")


def run(code: str | Path, directory: Path, *arguments: str) -> str:
    """Run a script, or code, in an empty directory and return what it prints."""
    file = code if isinstance(code, Path) else directory / "cells.py"
    if isinstance(code, str):
        file.write_text(code)
    command = Command(list(arguments), directory, environment={"MPLBACKEND": "Agg"}, script=file)
    command.wait(280)
    done = command.end()
    assert done.code == 0, done.err
    return done.out


def test_one_run_learns_the_rule_and_its_adapter_loads_with_peft(tmp_path):
    printed = run(EXAMPLES / "one_run.py", tmp_path, "tracker=none", "eval=loss")
    assert "completed" in printed
    assert "moon, cake, dog = 3" in printed  # the list backwards, then its length


def test_a_question_of_ones_own_is_answered_and_reported(tmp_path):
    printed = run(EXAMPLES / "own_question.py", tmp_path, *SHORT, "optim.steps=4")
    page = tmp_path / "out" / "sweeps" / "which_layers" / "report" / "index.html"
    assert str(page.relative_to(tmp_path)) in printed
    assert "Which layers should an adapter" in page.read_text()


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = json.loads((EXAMPLES / "own_table.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    shown = [f"print({ast.unparse(ast.parse(cell).body[-1])})" for cell in cells[1:-1]]
    code = "\n".join(
        [*cells, "from matplotlib import pyplot", "pyplot.savefig('figure.png')", *shown]
    )
    printed = run(code.replace("optim.steps=40", "optim.steps=4"), tmp_path)
    assert "nf4_dq" in printed
    assert "memory/peak_bytes" in printed
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_is_about_thirty_lines(file):
    assert len(file.read_text().splitlines()) <= 40
