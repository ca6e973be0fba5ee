"""Every question in sweeps/ is one that can be asked, and is what its text says."""

import json

import pytest
import yaml

from harness.config.compose import compose_run
from harness.question.axes import CaseAxis
from harness.question.check_space import check_space
from harness.question.compare import contrasts_of
from harness.question.load import known_sweeps, load_question, sweeps_directory
from harness.question.question import Question
from harness.question.settings import Method
from harness.sweeping.outcome import most_confirmed

COMPARED = {
    "alpha": ("lora.alpha", "64", "16"),
    "demo": ("lora.rank", "8", "2"),
    "double_quant": ("quant.double_quant", "true", "false"),
    "full_fine_tuning": ("trained", "qlora_16", "all_parameters"),
    "nf4_vs_int4": ("quant", "int4", "nf4"),
    "rank": ("lora.rank", "16", "8"),
    "rank_by_format": ("lora.rank", "32", "8"),
    "targets": ("targets", "qv", "all_linear"),
}
"""A contrast without which the question would not be answered: axis, level, reference."""
NAMED = (
    *("demo", "rank", "alpha", "targets", "nf4_vs_int4", "double_quant", "joint"),
    *("rank_by_format", "full_fine_tuning"),
)
READY = [name for name in known_sweeps() if "/" not in name]
"""Those of sweeps/ itself; the papers have their own tests."""
SECONDS_A_RUN = {"rule": 8, "facts": 38}
"""Of 120 steps of 16 rows, and of 600 of 32, with their evaluations, on two cores."""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_joint_begins_with_what_a_run_has_by_default():
    question = load_question("joint", [])
    (start,) = question.search.starts
    usual = compose_run(["model=embedded", "data=rule"])
    recipe = compose_run(
        [*question.base, *(f"{k}={v}" for k, v in start.items() if k != "lora"), "lora=all_linear"]
    )
    assert start["lora"] == "all_linear"
    assert (recipe.lora, recipe.quant, recipe.optim.lr) == (usual.lora, usual.quant, usual.optim.lr)


def runs_of(question: Question) -> int:
    """Return how many runs a question asks for at most."""
    trials = question.search.trials or question.space.num_points
    assert trials is not None
    confirm = question.confirm
    confirmed = 0 if confirm is None else most_confirmed(question) * len(confirm.seeds)
    return trials * len(question.search.seeds) + confirmed


def test_the_questions_that_are_promised_are_there():
    assert set(NAMED) <= set(known_sweeps())


@pytest.mark.parametrize("name", READY)
def test_a_ready_question_composes_is_valid_and_says_what_it_expects(name):
    question = load_question(name, [])
    assert question.name == name
    assert question.question.endswith("?")
    assert len(question.expect) > 40
    assert question.confirm is not None
    checked = check_space(question)
    assert {config.model.name for _, config in checked} == {"embedded"}


@pytest.mark.parametrize("name", READY)
def test_a_ready_question_written_out_asks_the_same(name, tmp_path):
    question = load_question(name, [])
    file = tmp_path / "written.yaml"
    file.write_text(yaml.safe_dump(question.tree(), sort_keys=False))
    assert load_question(str(file), []) == question


@pytest.mark.parametrize("name", COMPARED)
def test_what_a_ready_question_asks_about_is_confirmed_and_compared(name):
    question = load_question(name, [])
    contrasts = [c for compare in question.compare for c in contrasts_of(compare, question.space)]
    assert COMPARED[name] in {(c.axis, c.level, c.reference) for c in contrasts}
    assert question.margin is not None
    assert question.confirm is not None
    assert len(question.confirm.seeds) >= 3


@pytest.mark.parametrize("name", READY)
def test_a_ready_question_is_affordable_on_two_cores(name):
    question = load_question(name, [])
    data = compose_run(question.base).data.task
    assert data is not None
    assert runs_of(question) * SECONDS_A_RUN[data] < 90 * 60


def test_the_demo_has_few_short_runs():
    question = load_question("demo", [])
    assert question.search.method is Method.grid
    assert question.space.num_points is not None
    assert question.space.num_points <= 12
    assert runs_of(question) <= 6 + (6 + 1) * 3  # each level confirmed
    optim = compose_run(question.base).optim
    assert optim.steps is not None
    assert optim.steps <= 120


def adapter_parameters(name: str, rank: int) -> int:
    """Count LoRA's parameters from the shapes in the embedded model's own config."""
    file = sweeps_directory().parent / "harness" / "embedded" / "model" / "config.json"
    config = json.loads(file.read_text())
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    queries = config["num_attention_heads"] * config["head_dim"]
    q, k, v = (hidden, queries), (hidden, keys), (hidden, keys)
    o, gate, up, down = (queries, hidden), (hidden, middle), (hidden, middle), (middle, hidden)
    layers = {"qv": [q, v], "attention": [q, k, v, o], "mlp": [gate, up, down]}
    layers["all_linear"] = layers["attention"] + layers["mlp"]
    per_rank = sum(inputs + outputs for inputs, outputs in layers[name])
    return rank * per_rank * config["num_hidden_layers"]


def test_targets_are_compared_at_equal_parameters():
    question = load_question("targets", [])
    (axis,) = [axis for axis in question.space.axes if isinstance(axis, CaseAxis)]
    sizes = {}
    for label in axis.cases:
        config = compose_run([*question.base, *question.space.overrides({axis.key: label})])
        sizes[label] = adapter_parameters(label, config.lora.rank)
    budget = sizes["all_linear"]
    assert budget == 116_736
    for label, size in sizes.items():
        step = adapter_parameters(label, 1)
        assert abs(size - budget) <= step / 2, f"{label}: another rank comes nearer"
        assert abs(size - budget) / budget < 0.03
    text = (sweeps_directory() / "targets.yaml").read_text()
    assert all(f"{size:,}" in text for size in sizes.values())


def test_alpha_is_asked_at_a_fixed_rank_and_at_a_fixed_alpha_over_rank():
    asked = {
        (config.lora.rank, config.lora.alpha, config.lora.alpha_over_rank, config.optim.lr)
        for _, config in check_space(load_question("alpha", []))
    }
    rates = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2)
    assert asked == {
        *((8, alpha, None, rate) for alpha in (4.0, 16.0, 64.0) for rate in rates),
        *((rank, None, 2.0, rate) for rank in (2, 8, 32) for rate in rates),
    }


def test_double_quantization_is_asked_only_where_there_is_quantization():
    points = [point for point, _ in check_space(load_question("double_quant", []))]
    asked = [tuple(v for k, v in point.items() if k != "optim.lr") for point in points]
    assert list(dict.fromkeys(asked)) == [
        ("none",),
        *((name, double) for name in ("nf4", "fp4", "int4") for double in ("false", "true")),
    ]
