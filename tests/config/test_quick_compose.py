"""`compose_run` gives what Hydra gives, or refuses in its words, only faster."""

import itertools
import random

import pytest

from harness.config import compose
from harness.config.compose import (
    CONFIG_DIR_VARIABLE,
    compose_run,
    group_options,
    prepare_overrides,
)
from harness.errors import RequestError
from harness.request import check

BASES = {
    "nothing": [],
    "of a sweep": ["model=embedded", "data=facts", "optim.steps=600", "tracker=none", "seed=3"],
    "with a pair": ["lora.alpha=16", "optim.epochs=2", "quant=int4", "lora.rank=4"],
    "with paths": ["model=/models/a (b)", "data=pairs", "data.path=it's here", "paths.out=~/runs"],
}
GROUPS = [f"{group}={option}" for group, names in group_options().items() for option in names]
FIELDS = [
    "lora.rank=8",
    "lora.alpha=32",
    "lora.alpha_over_rank=0.5",
    "lora.alpha=null",
    "lora.rslora=true",
    "lora.init=gaussian",
    "lora.target_modules=[q_proj,v_proj]",
    "lora.target_modules=[]",
    "quant.format=fp4",
    "quant.double_quant=true",
    "quant.block_size=128",
    "quant.compute_dtype=bfloat16",
    "optim.lr=1e-3",
    "optim.lr=5",
    "optim.max_grad_norm=null",
    "optim.epochs=1.5",
    "optim.steps=12",
    "data.prompt_column='a, b'",
    "data.hub=org/name",
    "eval.choice_path=/data/mmlu (test).jsonl",
    "tracker.tags=[a,b]",
    "tracker.group=sweep",
    "resources.device=cpu",
    "resources.device=cuda:1",
    "paths.cache=~/cache",
    "model=org/Llama-3.2-1B",
    "model.revision=main",
    "seed=7",
]
UNUSUAL = ["+lora.rank=2", "++optim.lr=1e-2", "checkpoint={keep: 4}", "data.system=${model.name}"]
WRONG = [
    "lora.rnk=4",
    "quant=nf5",
    "quant.format=nf5",
    "lora.rank=abc",
    "lora.rank=2.5",
    "lora.rank={a: 1}",
    "lora.target_modules=q_proj",
    "lora.rank=2,4",
    "lora.rank=???",
    "~lora.rank",
    "+lora.bogus=1",
    "lora.rank=${nothing}",
    "nonsense",
]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def outcome(compose, overrides):
    """Return the configuration, or the words of the refusal."""
    try:
        return compose(overrides)
    except RequestError as error:
        return str(error)


def hydras(overrides):
    """Return what Hydra makes of all overrides at once."""
    return compose.composed_by_hydra(prepare_overrides(overrides))


def test_each_kind_of_override_gives_what_hydra_makes_of_it():
    base = BASES["of a sweep"]
    for override in (*FIELDS, *UNUSUAL):
        overrides = [*base, override]
        assert outcome(compose_run, overrides) == outcome(hydras, overrides), override


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_several_overrides_give_what_hydra_makes_of_them(base):
    draw = random.Random(len(base))
    for _ in range(4):
        overrides = [*base, *draw.sample([*FIELDS, *GROUPS], draw.randint(2, 8))]
        assert outcome(compose_run, overrides) == outcome(hydras, overrides), overrides


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_refused_in_hydras_words(wrong):
    overrides = ["data=facts", "quant=int4", wrong, "optim.lr=1e-3"]
    expected = outcome(hydras, overrides)
    assert isinstance(expected, str)
    assert outcome(compose_run, overrides) == expected


def test_one_composition_leaves_no_trace_in_the_next():
    base = ["lora.target_modules=[q_proj]"]
    before = compose_run(base)
    changed = compose_run(["lora.target_modules=[v_proj]", "optim.lr=1", "tracker.tags=[a]"])
    changed.lora.target_modules.append("o_proj")
    changed.tracker.tags.append("b")
    assert compose_run(base) == before == hydras(base)


def test_the_compute_type_follows_the_device_each_time(monkeypatch):
    assert compose_run([]).quant.compute_dtype.value == "float32"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert compose_run([]).quant.compute_dtype.value == "bfloat16"
    assert compose_run(["resources.device=cpu"]).quant.compute_dtype.value == "float32"


def test_hydra_composes_once_per_combination_of_groups(monkeypatch):
    calls = []
    compose_tree = compose.compose_tree
    monkeypatch.setattr(
        compose, "compose_tree", lambda groups: calls.append(groups) or compose_tree(groups)
    )
    compose._tree_of_groups.cache_clear()
    base = ["data=facts", "optim.steps=10"]
    for quant, rank, rate in itertools.product(("nf4", "int4"), range(1, 6), (1e-3, 1e-2)):
        config = compose_run([*base, f"quant={quant}", f"lora.rank={rank}", f"optim.lr={rate}"])
        assert (config.lora.rank, config.optim.lr) == (rank, rate)
    assert calls == [("data=facts", "quant=nf4"), ("data=facts", "quant=int4")]


def test_a_file_that_is_changed_is_read_again(tmp_path, monkeypatch):
    file = tmp_path / "quant" / "mine.yaml"
    file.parent.mkdir()
    monkeypatch.setenv(CONFIG_DIR_VARIABLE, str(tmp_path))
    for size in (32, 128):
        file.write_text(f"format: nf4\nblock_size: {size}\n")
        assert compose_run(["quant=mine"]).quant.block_size == size
    (tmp_path / "quant" / "other.yaml").write_text("format: int4\n")
    assert compose_run(["quant=other"]).quant.format.value == "int4"


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.rank=0"],
        ["quant=none", "quant.double_quant=true"],
        ["data.max_length=1"],
        ["data=pairs", "data.path=/nowhere.jsonl"],
        ["eval.choice_path=/nowhere.jsonl"],
    ],
)
def test_a_cell_is_refused_as_a_plain_run_is(overrides):
    from harness.commands.run import run_command

    with pytest.raises(RequestError) as expected:
        run_command(overrides, as_json=True)
    with pytest.raises(RequestError) as refused:
        check(compose_run(overrides))
    assert str(refused.value) == str(expected.value)


def test_a_good_cell_is_not_refused():
    check(compose_run(["data=rule", "tracker=none"]))
