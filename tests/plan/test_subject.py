"""What a plan is made for: the micro-batch, the device's defaults, and what costs the same."""

import copy
from pathlib import Path

import pytest

from harness.config.compose import compose_run
from harness.config.schema import OptimizerName, RunConfig, Schedule
from harness.data.prepare import prepare_data
from harness.errors import RequestError
from harness.plan import subject
from harness.plan.batch import largest_micro_batch
from harness.plan.prediction import BatchSize
from harness.plan.probe import PROBE_STEPS, cost_key, probe_config
from harness.plan.settings import PlanSettings, split_settings, with_device_defaults
from harness.plan.subject import judged_for, planned_device, subject_of

SHAPE = PlanSettings(shape="pythia_160m", device="cuda", length=32)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    words = ("data=rule", "optim.steps=3", "optim.batch_size=4", "resources.device=cpu")
    return compose_run([*words, f"paths.out={tmp_path}"])


def test_of_a_shape_the_micro_batch_is_stated(config: RunConfig) -> None:
    found = subject_of(config, SHAPE)
    assert (found.batch, found.device, found.num_rows) == (BatchSize(4, 32, 128), "cuda", None)
    assert found.batch_source == "stated, loss on all positions"
    some = subject_of(
        config, PlanSettings(shape="pythia_160m", device="cuda", length=32, loss_tokens=9)
    )
    assert (some.batch, some.batch_source) == (BatchSize(4, 32, 9), "stated")
    assert some.model is found.model, "it is read once"
    assert some.predict().peak_bytes < found.predict().peak_bytes < found.predict(2).peak_bytes


def test_of_data_at_hand_it_is_the_largest_of_its_rows(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    monkeypatch.setattr(subject, "_prepared", {})  # a plan before may have read the same data
    found = subject_of(config, PlanSettings())
    assert (found.device, found.batch_source) == ("cpu", "the largest of rule")
    source = found.model.shared.base.source
    assert source.directory is not None
    tokenizer = AutoTokenizer.from_pretrained(source.directory)
    rows = prepare_data(config.data, tokenizer, "own", tmp_path / "own").train
    assert found.num_rows == len(rows)
    assert found.batch == largest_micro_batch(config, rows, apart=False)[0]
    assert (tmp_path / "cache" / "fingerprints.json").is_file()
    limited = subject_of(config, PlanSettings(loss_tokens=2))
    assert limited.batch.loss_tokens == 2
    every = subject_of(config, PlanSettings(loss_tokens=10**6))
    assert every.batch.loss_tokens == every.batch.rows * every.batch.length


def test_rows_are_as_long_as_the_models_positions_at_most(config: RunConfig) -> None:
    longest = 2048
    assert (
        subject_of(config, PlanSettings(shape="pythia_160m", length=longest)).batch.length
        == longest
    )
    with pytest.raises(RequestError, match=r"rows of 2049 positions do not fit pythia_160m"):
        subject_of(config, PlanSettings(shape="pythia_160m", length=longest + 1))


@pytest.mark.parametrize(
    ("name", "judged"),
    [
        ("adamw", "adamw"),
        ("adamw_8bit", "adamw_8bit"),
        ("paged_adamw_8bit", "adamw_8bit"),
        ("paged_adamw_32bit", "adamw_8bit"),
    ],
)
def test_a_machine_without_a_gpu_judges_what_it_can(
    config: RunConfig, name: str, judged: str
) -> None:
    config.optim.name = OptimizerName(name)
    assert judged_for(config, "cpu") is config
    there = judged_for(config, "cuda")
    assert there.optim.name is OptimizerName(judged)
    assert there.resources.device == "auto"


@pytest.mark.parametrize(
    ("offloads", "checkpoints", "judged"),
    [(True, True, False), (True, False, True), (False, True, False), (False, False, False)],
)
def test_inputs_on_the_host_are_refused_without_checkpointing_only(
    config: RunConfig, offloads: bool, checkpoints: bool, judged: bool
) -> None:
    config.optim.offload_activations, config.optim.gradient_checkpointing = offloads, checkpoints
    assert judged_for(config, "cuda").optim.offload_activations is judged


def test_the_planned_device_is_the_stated_one_or_this_machines(config: RunConfig) -> None:
    assert planned_device(PlanSettings(device="cuda"), config) == "cuda"
    assert planned_device(PlanSettings(), config) == "cpu"


@pytest.mark.parametrize(
    ("device", "quant", "lora"),
    [("cuda", "bfloat16", "${quant.compute_dtype}"), ("cpu", "float32", "float32")],
)
def test_compute_types_are_the_planned_devices_unless_they_are_given(
    device: str, quant: str, lora: str
) -> None:
    settings = PlanSettings(device=device)
    types = [f"quant.compute_dtype={quant}", f"lora.compute_dtype={lora}"]
    assert with_device_defaults(["lora.rank=2"], settings) == ["lora.rank=2", *types]
    given = ["+quant.compute_dtype=float16"]
    assert with_device_defaults(given, settings) == [*given, types[1]]
    assert with_device_defaults(["lora.rank=2"], PlanSettings()) == ["lora.rank=2"]


@pytest.mark.parametrize("word", ["model=embedded", "model.name=x", "model.revision=y"])
def test_a_model_beside_a_shape_is_refused(word: str) -> None:
    with pytest.raises(RequestError, match="would be ignored beside plan"):
        with_device_defaults([word], SHAPE)
    assert with_device_defaults([word], PlanSettings()) == [word]


def test_settings_reach_from_1_to_a_thousand_million() -> None:
    for text, value in (("1", 1), ("1000000000", 10**9)):
        assert split_settings([f"plan.length={text}"])[0].length == value
        assert split_settings([f"plan.ranks={text}"])[0].ranks_of_table == [value]
    assert split_settings(["plan.tokens_per_second=0.5"])[0].tokens_per_second == 0.5
    assert split_settings(["plan.ranks=[1,8]"])[0].ranks_of_table == [1, 8]
    assert PlanSettings().ranks_of_table == []
    for text in ("0", "-1", "1000000001"):
        with pytest.raises(RequestError, match="above 0"):
            split_settings([f"plan.length={text}"])
        with pytest.raises(RequestError, match="no list of ranks"):
            split_settings([f"plan.ranks=2,{text}"])[0].ranks_of_table  # noqa: B018


SAME = {
    "optim.lr": 1e-2,
    "optim.schedule": Schedule.cosine,
    "optim.steps": 77,
    "seed": 5,
    "lora.alpha": 99.0,
    "lora.alpha_over_rank": None,
    "lora.rslora": True,
    "optim.warmup_steps": 3,
    "eval.generate": False,
    "checkpoint.every_steps": 5,
    "resources.device": "auto",
    "paths.out": "elsewhere",
}
OTHER = {
    "lora.rank": 9,
    "lora.dropout": 0.1,
    "lora.target_modules": ["mlp"],
    "optim.batch_size": 2,
    "optim.micro_batch_size": 1,
    "optim.name": OptimizerName.adamw_8bit,
    "optim.gradient_checkpointing": True,
    "optim.offload_activations": True,
    "optim.max_grad_norm": 0.5,
    "optim.neftune_alpha": 5.0,
    "optim.loraplus_ratio": 2.0,
    "quant.block_size": 128,
    "data.max_length": 24,
    "model.revision": "x",
}


def changed(config: RunConfig, key: str, value: object) -> RunConfig:
    """Return a configuration with another value of one key."""
    other = copy.deepcopy(config)
    section, _, name = key.rpartition(".")
    setattr(getattr(other, section) if section else other, name, value)
    return other


def test_what_costs_the_same_has_one_key(config: RunConfig) -> None:
    key = cost_key(config)
    for name, value in SAME.items():
        assert cost_key(changed(config, name, value)) == key, name
    keys = [cost_key(changed(config, name, value)) for name, value in OTHER.items()]
    assert len({key, *keys}) == len(OTHER) + 1


def test_adapters_of_several_scalings_keep_them_and_a_probe_is_short_and_alone() -> None:
    words = ["data=rule", "optim.steps=30", "seed=4", "lora.rank=4"]
    probe = probe_config(compose_run([*words, "lora.alpha=6"]))
    assert (probe.lora.alpha, probe.lora.alpha_over_rank, probe.lora.rslora) == (None, 1.0, False)
    assert (probe.optim.steps, probe.seed, probe.eval.before, probe.eval.generate) == (
        *(PROBE_STEPS, 0, False, False),
    )
    assert PROBE_STEPS == 12
    for several in ("lora.rank_pattern={v_proj: 2}", "lora.alpha_pattern={v_proj: 2}"):
        kept = compose_run([*words, "lora.alpha=6", several])
        assert probe_config(kept).lora == kept.lora
    whole = compose_run(["data=rule", "optim.steps=3", "quant=none", "lora=none"])
    assert probe_config(whole).lora == whole.lora
