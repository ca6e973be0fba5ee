"""Validation: every bad value is refused with what was given and what would work."""

import copy

import pytest

from harness.config.compose import compose_run
from harness.config.validate import BLOCK_SIZES, validate
from harness.errors import RequestError


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("lora.rank=0", ["lora.rank=0", "at least 1"]),
        ("lora.rank=-3", ["lora.rank=-3", "at least 1"]),
        ("lora.alpha=0", ["lora.alpha=0", "positive"]),
        ("lora.alpha=-4", ["lora.alpha=-4", "positive"]),
        ("lora.alpha=nan", ["lora.alpha=nan", "finite"]),
        ("lora.alpha_over_rank=inf", ["lora.alpha_over_rank=inf", "finite"]),
        ("lora.alpha=8 lora.alpha_over_rank=2", ["alpha=8", "alpha_over_rank=2", "exactly one"]),
        ("lora.alpha_over_rank=null", ["exactly one", "neither"]),
        ("lora.dropout=1", ["lora.dropout=1", "below 1"]),
        ("lora.target_modules=[]", ["lora.target_modules=[]", "all_linear"]),
        ("lora.target_modules=[q,q]", ["q", "twice"]),
        ("quant.block_size=100", ["quant.block_size=100", "power of two", "32", "4096"]),
        ("quant.block_size=16", ["quant.block_size=16", "32"]),
        ("quant.block_size=8192", ["quant.block_size=8192", "4096"]),
        ("quant=none quant.block_size=128", ["quant.block_size=128", "ignored", "nf4"]),
        ("quant=none quant.double_quant=true", ["quant.double_quant=true", "none", "nf4"]),
        ("quant=int8 quant.double_quant=true", ["quant.double_quant=true", "int8", "nf4"]),
        ("optim.lr=0", ["optim.lr=0", "positive"]),
        ("optim.lr=nan", ["optim.lr=nan", "finite"]),
        ("optim.weight_decay=-1", ["optim.weight_decay=-1"]),
        ("optim.beta2=1", ["optim.beta2=1", "below 1"]),
        ("optim.max_grad_norm=0", ["optim.max_grad_norm=0", "null"]),
        ("optim.batch_size=0", ["optim.batch_size=0", "at least 1"]),
        ("optim.batch_size=6 optim.micro_batch_size=4", ["micro_batch_size=4", "1, 2, 3, 6"]),
        ("optim.micro_batch_size=0", ["micro_batch_size=0", "16"]),
        ("optim.steps=5 optim.epochs=1", ["steps=5", "epochs=1", "exactly one"]),
        ("optim.steps=null", ["exactly one", "neither"]),
        ("optim.steps=-1", ["optim.steps=-1", "at least 1", "0 to evaluate"]),
        ("optim.epochs=0", ["optim.epochs=0", "positive"]),
        ("optim.warmup_steps=150", ["optim.warmup_steps=150", "below optim.steps"]),
        ("optim.offload_activations=true", ["offload_activations", "gradient_checkpointing=true"]),
        (
            "optim.gradient_checkpointing=true optim.offload_activations=true",
            ["offload_activations", "on the CPU"],
        ),
        ("optim=paged_adamw_8bit", ["paged_adamw_8bit", "optim=adamw_8bit"]),
        ("optim=paged_adamw_32bit", ["paged_adamw_32bit", "optim=adamw"]),
        ("eval=loss eval.max_new_tokens=8", ["eval.max_new_tokens", "ignored"]),
        ("eval.every_steps=0", ["eval.every_steps=0"]),
        ("optim.steps=150 eval.every_steps=151", ["eval.every_steps=151", "150"]),
        ("eval.keep_best=true", ["eval.keep_best", "eval.every_steps"]),
        ("resources.device=gpu", ["resources.device=gpu", "cuda:N"]),
        ("resources.device=cuda", ["resources.device=cuda", "cpu"]),
        ("resources.threads=0", ["resources.threads=0"]),
        ("checkpoint.keep=1", ["checkpoint.keep=1", "2"]),
        ("checkpoint.every_steps=0", ["checkpoint.every_steps=0"]),
    ],
)
def test_a_bad_value_is_refused_by_name(overrides, words):
    config = compose_run(overrides.split())
    with pytest.raises(RequestError) as refused:
        validate(config)
    message = str(refused.value)
    assert all(word in message for word in words), message


def test_all_problems_are_told_at_once():
    with pytest.raises(RequestError) as refused:
        validate(compose_run(["lora.rank=0", "optim.lr=-1", "quant.block_size=3"]))
    assert len(str(refused.value).splitlines()) == 3


def test_every_block_size_that_bitsandbytes_takes_is_valid():
    assert BLOCK_SIZES == (32, 64, 128, 256, 512, 1024, 2048, 4096)
    for size in BLOCK_SIZES:
        validate(compose_run([f"quant.block_size={size}"]))


def test_no_steps_are_valid_they_evaluate_only():
    validate(compose_run(["optim.steps=0"]))


def test_a_validator_judges_and_never_edits():
    config = compose_run(["lora.alpha=16", "optim.epochs=1"])
    before = copy.deepcopy(config)
    validate(config)
    assert config == before
