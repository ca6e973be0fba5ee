"""A composer gives what `compose_run` gives, or refuses in its words, only faster."""

import itertools
import random

import pytest

from harness.config.compose import compose_run, group_options
from harness.errors import RequestError
from harness.question import composer as composer_module
from harness.question.composer import Composer
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


def test_it_composes_each_kind_of_override_as_compose_run_does():
    base = BASES["of a sweep"]
    composer = Composer(base)
    for override in (*FIELDS, *UNUSUAL):
        expected = outcome(compose_run, [*base, override])
        assert outcome(composer.compose, [override]) == expected, override


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_it_composes_several_overrides_as_compose_run_does(base):
    draw = random.Random(len(base))
    composer = Composer(base)
    for _ in range(6):
        overrides = draw.sample([*FIELDS, *GROUPS], draw.randint(2, 8))
        expected = outcome(compose_run, [*base, *overrides])
        assert outcome(composer.compose, overrides) == expected, overrides


@pytest.mark.parametrize("wrong", WRONG)
def test_it_refuses_what_compose_run_refuses_in_its_words(wrong):
    composer = Composer(["data=facts"])
    for overrides in ([wrong], ["quant=int4", wrong, "optim.lr=1e-3"]):
        expected = outcome(compose_run, ["data=facts", *overrides])
        assert isinstance(expected, str)
        assert outcome(composer.compose, overrides) == expected


def test_one_composition_leaves_no_trace_in_the_next():
    composer = Composer(["lora.target_modules=[q_proj]"])
    before = composer.compose([])
    changed = composer.compose(["lora.target_modules=[v_proj]", "optim.lr=1", "tracker.tags=[a]"])
    changed.lora.target_modules.append("o_proj")
    changed.tracker.tags.append("b")
    assert composer.compose([]) == before == compose_run(["lora.target_modules=[q_proj]"])


def test_the_compute_type_follows_the_device_each_time(monkeypatch):
    composer = Composer([])
    assert composer.compose([]).quant.compute_dtype.value == "float32"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert composer.compose([]).quant.compute_dtype.value == "bfloat16"
    assert composer.compose(["resources.device=cpu"]).quant.compute_dtype.value == "float32"


def test_hydra_composes_once_per_combination_of_groups(monkeypatch):
    calls = []
    compose_tree = composer_module.compose_tree
    monkeypatch.setattr(
        composer_module, "compose_tree", lambda groups: calls.append(groups) or compose_tree(groups)
    )
    monkeypatch.setattr(composer_module, "compose_run", None)
    composer = Composer(["data=facts", "optim.steps=10"])
    for quant, rank, rate in itertools.product(("nf4", "int4"), range(1, 6), (1e-3, 1e-2)):
        config = composer.compose([f"quant={quant}", f"lora.rank={rank}", f"optim.lr={rate}"])
        assert (config.lora.rank, config.optim.lr) == (rank, rate)
    assert calls == [("data=facts", "quant=nf4"), ("data=facts", "quant=int4")]


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
        check(Composer([]).compose(overrides))
    assert str(refused.value) == str(expected.value)


def test_a_good_cell_is_not_refused():
    check(compose_run(["data=rule", "tracker=none"]))
