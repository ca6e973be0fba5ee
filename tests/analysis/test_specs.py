"""Every question in sweeps/ has its tables, and published values are where a table can show them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from analysis.frame import Role
from analysis.published import load_published, published_names
from analysis.render import csv, html, latex_document, markdown
from analysis.sources import load_sweep
from analysis.specs import OF_SWEEP, specs_for
from analysis.tables import Table, build_table
from tests.analysis.made_sweeps import made_sweep
from tests.analysis.test_render import compiled

REPOSITORY = Path(__file__).resolve().parents[2]
SWEEPS = sorted(path.stem for path in (REPOSITORY / "sweeps").glob("*.yaml"))


def tables_of(out: Path, name: str) -> list[Table]:
    sweep = load_sweep(out, name)
    assert sweep.problems == []
    return [build_table(spec, sweep.rows) for spec in specs_for(sweep)]


def test_every_ready_question_has_tables_of_its_own() -> None:
    assert sorted(OF_SWEEP) == SWEEPS


def test_what_alpha_s_tables_hold_fixed_is_what_its_question_does() -> None:
    question = yaml.safe_load((REPOSITORY / "sweeps" / "alpha.yaml").read_text())
    fixed = {
        key: float(value)
        for overrides in question["space"]["fixed"]["cases"].values()
        for key, _, value in (override.partition("=") for override in overrides)
    }
    by_alpha, by_rank = OF_SWEEP["alpha"]
    assert by_alpha.where == {"lora.rank": (fixed["lora.rank"],)}
    assert by_rank.where == {"alpha/rank": (fixed["lora.alpha_over_rank"],)}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Table]]:
    """The tables of every ready question, on made runs."""
    found = {}
    for name in SWEEPS:
        out = tmp_path_factory.mktemp(name)
        made_sweep(name, out)
        found[name] = tables_of(out, name)
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_the_tables_of_a_ready_question_render(name: str, ready: dict[str, list[Table]]) -> None:
    tables = ready[name]
    names = [table.name for table in tables]
    assert names[0] == "confirmation"
    assert {"search", "cost", *(spec.name for spec in OF_SWEEP[name])} <= set(names)
    assert len(set(names)) == len(names)
    for table in tables:
        for render in (markdown, csv, html):
            assert render(table)
        assert json.loads(table.sources())["cells"]


def test_the_tables_of_all_ready_questions_compile(
    ready: dict[str, list[Table]], tmp_path: Path
) -> None:
    compiled(latex_document([table for tables in ready.values() for table in tables]), tmp_path)


def test_confirmation_holds_no_run_of_the_search(tmp_path: Path) -> None:
    made_sweep("demo", tmp_path)
    sweep = load_sweep(tmp_path, "demo")
    fresh = {row["run_id"] for row in sweep.rows_of(Role.confirmation)}
    for table in tables_of(tmp_path, "demo"):
        used = {run for cell in json.loads(table.sources())["cells"] for run in cell["runs"]}
        if table.name == "confirmation":
            assert used == fresh
        else:
            assert not used & fresh


def test_a_sweep_that_has_just_begun_has_no_tables(tmp_path: Path) -> None:
    made_sweep("demo", tmp_path)
    state = tmp_path / "sweeps" / "demo" / "state.json"
    tree = json.loads(state.read_text()) | {"trials": [], "runs": [], "confirmed": []}
    state.write_text(json.dumps(tree))
    assert specs_for(load_sweep(tmp_path, "demo")) == []


def test_an_axis_given_on_the_command_line_is_a_row_of_the_default_tables(tmp_path: Path) -> None:
    made_sweep("rank", tmp_path)
    sweep = load_sweep(tmp_path, "rank")
    (search,) = [spec for spec in specs_for(sweep) if spec.name == "search"]
    assert search.rows == sweep.axes == ("lora.rank", "optim.lr")
    (cost,) = [spec for spec in specs_for(sweep) if spec.name == "cost"]
    assert cost.rows == ("lora.rank",), "a learning rate costs nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_the_tables_of_a_tiny_real_sweep_render(name: str, tmp_path: Path) -> None:
    small = ["optim.steps=2", "eval.before=false", "eval.generate_rows=2", "optim.batch_size=2"]
    small += ["search.trials=5", "search.seeds=[0]", "confirm.top=2", "confirm.seeds=[10,11]"]
    small += ["tracker=none", f"paths.out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", "sweep", name, *small],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    tables = tables_of(tmp_path, name)
    assert tables[0].name == "confirmation"
    compiled(latex_document(tables), tmp_path)


@pytest.mark.parametrize("name", published_names())
def test_published_values_say_where_they_stand(name: str) -> None:
    table = load_published(name)
    assert table.paper
    assert table.table
    assert (table.arxiv is None) != (table.source is None), "a paper's number, or an address"
    assert table.setting
    for value in table.values:
        assert value.where
        assert value.label


def test_some_published_values_by_hand() -> None:
    # QLoRA, Table 2, and LoRA, Table 6 (WikiSQL, q and v), as printed.
    rounding = {value.label: value.value for value in load_published("qlora_rounding").values}
    assert rounding == {
        "Int4": 34.34,
        "Float4 E2M1": 31.07,
        "Float4 E3M0": 29.48,
        "NFloat4 + DQ": 27.41,
    }
    formats = {value.where["quant"] for value in load_published("qlora_rounding").values}
    assert "fp4" not in formats, "bitsandbytes' grid is neither of the paper's floats"
    ranks = load_published("lora_rank_query_value").values
    assert [(v.where["lora.rank"], v.value) for v in ranks] == [
        (1, 73.4),
        (2, 73.3),
        (4, 73.7),
        (8, 73.8),
        (64, 73.5),
    ]
    with pytest.raises(ValueError, match="near names: qlora_mmlu"):
        load_published("qlora_mmul")
