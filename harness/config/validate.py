"""Judge a RunConfig as far as it shows without a model: ranges, contradictions, keys without effect.

Must not import torch, transformers or wandb. Validators judge; they never edit.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from harness.config.devices import resolved_device, visible_cuda_devices
from harness.config.resources import Shard
from harness.config.schema import (
    DataConfig,
    DataForm,
    EvalConfig,
    LoraConfig,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.config.storage import BLOCKWISE
from harness.errors import RequestError

BLOCK_SIZES = tuple(2**power for power in range(5, 13))  # 32 … 4096, what bitsandbytes takes


def validate(config: RunConfig) -> None:
    """Raise RequestError with one line for everything that is wrong with `config`."""
    problems = [
        *_size_problems(config),
        *_quant_problems(config.quant),
        *_lora_problems(config.lora),
        *_start_problems(config),
        *_optim_problems(config.optim),
        *_eval_problems(config.eval, config.optim),
        *_stride_problems(config.eval.stride, config.data),
        *_machine_problems(config),
        *_parallel_problems(config),
    ]
    if problems:
        raise RequestError("\n".join(problems))


MOST = 1_000_000_000
"""Of anything that is counted: steps, rows, tokens, processes."""
MOST_ROWS_A_STEP = 32_768
"""Of one optimizer step, whose order is drawn before it begins."""
MOST_SEED = 2**53 - 1
"""Seeds are written to files that JSON readers everywhere read exactly up to here."""
MOST_EPOCHS = 1e6


def _size_problems(config: RunConfig) -> Iterator[str]:
    """Yield numbers that nothing could be made of."""
    for section in fields(config):
        part = getattr(config, section.name)
        named = (
            [(f"{section.name}.{each.name}", getattr(part, each.name)) for each in fields(part)]
            if is_dataclass(part)
            else [(section.name, part)]
        )
        for name, value in named:
            most = MOST_SEED if name.endswith("seed") else MOST
            if type(value) is int and abs(value) > most:
                yield f"{name}={value} is beyond {most:,}, which nothing here can have"
    if config.optim.epochs is not None and config.optim.epochs > MOST_EPOCHS:
        yield f"optim.epochs={config.optim.epochs} is more than {MOST_EPOCHS:,.0f}"


def _quant_problems(quant: QuantConfig) -> Iterator[str]:
    default = QuantConfig()
    if quant.format not in BLOCKWISE:
        if quant.double_quant:
            yield (
                f"quant.double_quant=true needs storage with per-block constants, got "
                f"quant.format={quant.format.value}; use one of {_names(BLOCKWISE)}"
            )
        if quant.block_size != default.block_size:
            yield (
                f"quant.block_size={quant.block_size} would be ignored by quant.format="
                f"{quant.format.value}; it belongs to {_names(BLOCKWISE)}"
            )
    elif quant.block_size not in BLOCK_SIZES:
        yield (
            f"quant.block_size={quant.block_size} must be a power of two from {BLOCK_SIZES[0]} to "
            f"{BLOCK_SIZES[-1]}"
        )


def _lora_problems(lora: LoraConfig) -> Iterator[str]:
    if lora.rank < 1:
        yield f"lora.rank={lora.rank} must be at least 1"
    given = {
        name: value
        for name, value in (
            ("lora.alpha", lora.alpha),
            ("lora.alpha_over_rank", lora.alpha_over_rank),
        )
        if value is not None
    }
    if len(given) != 1:
        got = " and ".join(f"{name}={value}" for name, value in given.items()) or "neither"
        yield f"exactly one of lora.alpha and lora.alpha_over_rank must be given, got {got}"
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            yield f"{name}={value} must be a positive finite number"
    if not 0 <= lora.dropout < 1:
        yield f"lora.dropout={lora.dropout} must be at least 0 and below 1"
    if not lora.target_modules:
        yield "lora.target_modules=[] adapts nothing; name sets (all_linear, attention, mlp) or layers"
    if len(set(lora.target_modules)) != len(lora.target_modules):
        yield f"lora.target_modules={lora.target_modules} names a layer twice"


def _start_problems(config: RunConfig) -> Iterator[str]:
    init = config.lora.init
    if config.quant.format is QuantFormat.as_stored and init.rewrites_base:
        yield (
            f"lora.init={init.value} starts from the dense weights, which a checkpoint that came quantized "
            "does not have; with quant.format=as_stored use lora.init=default or gaussian"
        )


def _optim_problems(optim: OptimConfig) -> Iterator[str]:
    for name in ("lr", "loraplus_lr_ratio", "epsilon"):
        value = getattr(optim, name)
        if not (math.isfinite(value) and value > 0):
            yield f"optim.{name}={value} must be a positive finite number"
    if not (math.isfinite(optim.weight_decay) and optim.weight_decay >= 0):
        yield f"optim.weight_decay={optim.weight_decay} must be a finite number of at least 0"
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            yield f"optim.{name}={getattr(optim, name)} must be at least 0 and below 1"
    clip = optim.max_grad_norm
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        yield f"optim.max_grad_norm={clip} must be a positive finite number, or null for no clipping"
    if (optim.steps is None) == (optim.epochs is None):
        got = "neither" if optim.steps is None else f"steps={optim.steps} and epochs={optim.epochs}"
        yield f"exactly one of optim.steps and optim.epochs must be given, got {got}"
    if optim.steps is not None and optim.steps < 0:
        yield f"optim.steps={optim.steps} must be at least 1, or 0 to evaluate and not to train"
    if optim.epochs is not None and not (math.isfinite(optim.epochs) and optim.epochs > 0):
        yield f"optim.epochs={optim.epochs} must be a positive finite number"
    trained = optim.steps or (math.inf if optim.steps is None else 1)
    if not 0 <= optim.warmup_steps < trained:
        yield f"optim.warmup_steps={optim.warmup_steps} must be at least 0 and below optim.steps"
    yield from _batch_problems(optim)


def _batch_problems(optim: OptimConfig) -> Iterator[str]:
    if not 1 <= optim.batch_size <= MOST_ROWS_A_STEP:
        yield f"optim.batch_size={optim.batch_size} must be at least 1, at most {MOST_ROWS_A_STEP:,}"
        return
    micro = optim.micro_batch_size
    if micro is not None and (micro < 1 or optim.batch_size % micro):
        yield (
            f"optim.micro_batch_size={micro} must divide optim.batch_size={optim.batch_size}; "
            f"{_divisors(optim.batch_size)} do"
        )


def _divisors(number: int) -> str:
    """Return the numbers that divide another, of a very large one not all."""
    small = [n for n in range(1, min(math.isqrt(number), 10_000) + 1) if number % n == 0]
    return ", ".join(map(str, sorted({*small, *(number // n for n in small)})))


def _stride_problems(stride: int | None, data: DataConfig) -> Iterator[str]:
    if stride is None:
        return
    if data.form is not DataForm.text:
        yield f"eval.stride={stride} belongs to data.form=text, got data.form={data.form.value}"
    elif not 1 <= stride < data.max_length:
        yield (
            f"eval.stride={stride} must be at least 1 and below data.max_length={data.max_length}: the first "
            "token of a window is predicted by nothing in it"
        )


def _eval_problems(config: EvalConfig, optim: OptimConfig) -> Iterator[str]:
    default = EvalConfig()
    for name in ("every_steps", "batch_size", "generate_rows", "max_new_tokens"):
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"eval.{name}={value} must be at least 1"
    if not config.generate:
        for name in ("generate_rows", "max_new_tokens"):
            if getattr(config, name) != getattr(default, name):
                yield f"eval.{name} would be ignored: eval.generate=false"
    if config.keep_best and config.every_steps is None:
        yield "eval.keep_best=true needs eval.every_steps: with one evaluation the last is the best"
    too_late = (
        config.every_steps is not None
        and optim.steps is not None
        and config.every_steps > optim.steps
    )
    if too_late:
        yield f"eval.every_steps={config.every_steps} is above optim.steps={optim.steps}: it never comes"


def _machine_problems(config: RunConfig) -> Iterator[str]:
    device = config.resources.device
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        yield f"resources.device={device} must be auto, cpu, cuda or cuda:N"
        return
    wants_cuda = device.startswith("cuda")
    if wants_cuda and not visible_cuda_devices():
        yield f"resources.device={device} asks for a GPU, but none is visible; use cpu or auto"
    if config.optim.name.value.startswith("paged") and resolved_device(device) == "cpu":
        unpaged = "adamw_8bit" if "8bit" in config.optim.name.value else "adamw"
        yield (
            f"optim={config.optim.name.value} pages its state between GPU and host, and this run is on "
            f"the CPU, where it would silently be {unpaged}; ask for optim={unpaged}"
        )
    threads = config.resources.threads
    if threads is not None and threads < 1:
        yield f"resources.threads={threads} must be at least 1"
    checkpoint = config.checkpoint
    for field in fields(checkpoint):
        value = getattr(checkpoint, field.name)
        if value is not None and value <= 0:
            yield f"checkpoint.{field.name}={value} must be positive"
    if checkpoint.keep == 1:
        yield "checkpoint.keep=1 leaves nothing to fall back to when the newest is damaged; use 2 or more"


def _parallel_problems(config: RunConfig) -> Iterator[str]:
    processes, device = config.resources.data_parallel, config.resources.device
    yield from _shard_problems(config)
    if processes < 1:
        yield f"resources.data_parallel={processes} must be at least 1"
    if processes <= 1:
        return
    optim = config.optim
    key = "batch_size" if optim.micro_batch_size is None else "micro_batch_size"
    rows = optim.micro_batch_size or optim.batch_size
    if rows >= 1 and rows % processes:
        yield (
            f"optim.{key}={rows} must be a multiple of resources.data_parallel={processes}, so that each "
            f"process has as many rows; with {rows} rows resources.data_parallel can be "
            f"{_divisors(rows)}, with {processes} processes they can be {processes}, {2 * processes}, …"
        )
    if re.fullmatch(r"cuda:\d+", device):
        yield (
            f"resources.device={device} names one GPU, and resources.data_parallel={processes} takes "
            f"{processes}; use resources.device=cuda, and CUDA_VISIBLE_DEVICES to say which"
        )
        return
    visible = visible_cuda_devices()
    if device in ("auto", "cuda") and 0 < visible < processes:
        yield (
            f"resources.data_parallel={processes} needs a GPU for each process, and {visible} "
            f"{'is' if visible == 1 else 'are'} visible; use at most {visible}, or resources.device=cpu"
        )


def _shard_problems(config: RunConfig) -> Iterator[str]:
    shard, processes = config.resources.shard, config.resources.data_parallel
    if shard is Shard.none:
        return
    if processes <= 1:
        yield (
            f"resources.shard={shard.value} divides the base among the processes of a run, and "
            f"resources.data_parallel={processes} is one; ask for resources.data_parallel=2 or more"
        )
    init = config.lora.init
    if init.rewrites_base:
        yield (
            f"lora.init={init.value} rewrites the base, of which no process has a whole layer with "
            f"resources.shard={shard.value}; use lora.init=default or gaussian, or resources.shard=none"
        )


def _names(formats: tuple[QuantFormat, ...]) -> str:
    return ", ".join(quant_format.value for quant_format in formats)
