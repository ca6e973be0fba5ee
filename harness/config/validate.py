"""Judge a RunConfig as far as it shows without a model: ranges, contradictions, keys without effect.

Must not import torch, transformers or wandb. Validators judge; they never edit.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from harness.config.devices import resolved_device, visible_cuda_devices
from harness.config.lora import may_match_for_ever
from harness.config.resources import BackendName, Shard
from harness.config.schema import (
    EMBEDDED_DOMAIN,
    FOLLOWS_LOSS,
    DataConfig,
    DataForm,
    EvalConfig,
    LoraConfig,
    LoraInit,
    LoraMethod,
    OptimConfig,
    QuantConfig,
    QuantFormat,
    RunConfig,
    Schedule,
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
        *_method_problems(config.lora),
        *_full_problems(config),
        *_start_problems(config),
        *_optim_problems(config.optim),
        *_schedule_problems(config.optim, config.eval),
        *_eval_problems(config.eval, config.optim, answers=config.data.answers is not None),
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
    if lora.trains_all:
        return
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


def _method_problems(lora: LoraConfig) -> Iterator[str]:
    default, method = LoraConfig(), lora.method
    for name, patterns in (
        ("rank_pattern", lora.rank_pattern),
        ("alpha_pattern", lora.alpha_pattern),
    ):
        for pattern, value in (patterns or {}).items():
            if not (math.isfinite(value) and value > 0):
                least = "at least 1" if name == "rank_pattern" else "a positive finite number"
                yield f"lora.{name}: {pattern!r} must be {least}, got {value}"
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"lora.{name}: {pattern!r} is no regular expression: {error}"
            else:
                if may_match_for_ever(pattern):
                    yield (
                        f"lora.{name}: {pattern!r} may take for ever to match: it repeats what repeats or "
                        "has a choice in it, or has more than three repetitions; write layers as "
                        r".*\.[0-5]\.mlp or (q_proj|v_proj)"
                    )
    of_qalora, of_loftq = method is LoraMethod.qalora, lora.init is LoraInit.loftq
    for name, value, belongs, owner in (
        ("qalora_group_size", lora.qalora_group_size, of_qalora, "method=qalora"),
        ("loftq_iterations", lora.loftq_iterations, of_loftq, "init=loftq"),
    ):
        if value < 1:
            yield f"lora.{name}={value} must be at least 1"
        elif not belongs and value != getattr(default, name):
            yield f"lora.{name}={value} would be ignored: it belongs to lora.{owner}"
    unknown = sorted(set(lora.train_also) - {"embed_tokens", "lm_head"})
    if unknown:
        yield (
            f"lora.train_also={lora.train_also}: {unknown[0]} is neither embed_tokens nor lm_head, as every "
            "model's embeddings and head are called here; layers of the blocks are for lora.target_modules"
        )
    if len(set(lora.train_also)) != len(lora.train_also):
        yield f"lora.train_also={lora.train_also} names a module twice"
    if method is LoraMethod.qalora and lora.init is not LoraInit.default:
        yield (
            f"lora.init={lora.init.value} gives A a column for every input, and with lora.method=qalora it "
            "has one for a group of them; use lora.init=default"
        )


def _full_problems(config: RunConfig) -> Iterator[str]:
    """Yield what full fine-tuning cannot have, or would ignore."""
    lora, default = config.lora, LoraConfig()
    if not lora.trains_all:
        return
    if config.quant.format is not QuantFormat.none:
        yield (
            f"lora=none trains the model's own weights, of which quant.format={config.quant.format.value} "
            "keeps codes; use quant=none, or an adapter on them (lora=all_linear)"
        )
    names = (
        *("rank", "alpha", "alpha_over_rank", "rank_pattern", "alpha_pattern", "target_modules"),
        *("dropout", "rslora", "init", "train_also"),
    )
    for name in names:
        value = getattr(lora, name)
        if value != getattr(default, name):
            yield (
                f"lora.{name}={getattr(value, 'value', value)} would be ignored by lora=none, which trains "
                "all of the model without an adapter"
            )
    if lora.compute_dtype not in (default.compute_dtype, config.quant.compute_dtype):
        yield (
            f"lora.compute_dtype={lora.compute_dtype.value} would be ignored by lora=none; the type that it "
            "computes in is quant.compute_dtype"
        )
    ratio = config.optim.loraplus_ratio
    if ratio != OptimConfig().loraplus_ratio:
        yield f"optim.loraplus_ratio={ratio} would be ignored by lora=none: there is no B"
    backend = config.resources.backend
    if backend not in (BackendName.auto, BackendName.reference):
        yield (
            f"resources.backend={backend.value} computes a frozen base, and lora=none trains it; use "
            "resources.backend=auto"
        )


def _start_problems(config: RunConfig) -> Iterator[str]:
    init = config.lora.init
    if init is LoraInit.loftq and config.quant.format is QuantFormat.none:
        yield (
            "lora.init=loftq begins with what rounding has taken from the weights, and quant=none rounds "
            "nothing; use lora.init=default, or a quantized base"
        )
    if config.quant.format is QuantFormat.as_stored and init.from_dense:
        yield (
            f"lora.init={init.value} starts from the dense weights, which a checkpoint that came quantized "
            "does not have; with quant.format=as_stored use lora.init=default or gaussian"
        )


def _optim_problems(optim: OptimConfig) -> Iterator[str]:
    for name in ("lr", "loraplus_ratio", "epsilon"):
        value = getattr(optim, name)
        if not (math.isfinite(value) and value > 0):
            yield f"optim.{name}={value} must be a positive finite number"
    noise = optim.neftune_alpha
    if noise is not None and not (math.isfinite(noise) and noise > 0):
        yield f"optim.neftune_alpha={noise} must be a positive finite number, or null for no noise"
    if not (math.isfinite(optim.weight_decay) and optim.weight_decay >= 0):
        yield f"optim.weight_decay={optim.weight_decay} must be a finite number of at least 0"
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            yield f"optim.{name}={getattr(optim, name)} must be at least 0 and below 1"
    clip = optim.max_grad_norm
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        yield f"optim.max_grad_norm={clip} must be a positive finite number, or null for no clipping"
    if optim.offload_activations and not optim.gradient_checkpointing:
        yield (
            "optim.offload_activations=true would be ignored: it says where gradient checkpointing keeps the "
            "blocks' inputs; add optim.gradient_checkpointing=true"
        )
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


_READ = {
    Schedule.cosine: ("schedule_cycles",),
    Schedule.cosine_with_restarts: ("schedule_cycles",),
    Schedule.cosine_with_min_lr: ("schedule_cycles", "min_lr_ratio"),
    Schedule.cosine_warmup_with_min_lr: ("schedule_cycles", "min_lr_ratio"),
    Schedule.polynomial: ("schedule_power", "min_lr_ratio"),
    Schedule.warmup_stable_decay: ("schedule_cycles", "min_lr_ratio", "decay_steps"),
    Schedule.reduce_lr_on_plateau: ("min_lr_ratio",),
    Schedule.greedy: ("min_lr_ratio",),
}
"""Settings that a schedule reads."""
_NEEDED = {
    Schedule.cosine_with_min_lr: "min_lr_ratio",
    Schedule.cosine_warmup_with_min_lr: "min_lr_ratio",
    Schedule.warmup_stable_decay: "decay_steps",
}
_LEAST_LR = 1e-7
"""The polynomial's last learning rate where none is given."""


def _schedule_problems(optim: OptimConfig, asked: EvalConfig) -> Iterator[str]:
    schedule = optim.schedule
    for name in ("schedule_cycles", "schedule_power", "min_lr_ratio", "decay_steps"):
        value = getattr(optim, name)
        if value is None:
            continue
        readers = [each.value for each, read in _READ.items() if name in read]
        if name not in _READ.get(schedule, ()):
            yield (
                f"optim.{name}={value} would be ignored by optim.schedule={schedule.value}; it belongs to "
                f"{', '.join(readers)}"
            )
        elif not (math.isfinite(value) and (value > 0 or (name == "min_lr_ratio" and value == 0))):
            yield f"optim.{name}={value} must be a positive finite number"
    needed = _NEEDED.get(schedule)
    if needed is not None and getattr(optim, needed) is None:
        yield f"optim.schedule={schedule.value} needs optim.{needed}"
    if optim.min_lr_ratio is not None and optim.min_lr_ratio >= 1:
        yield f"optim.min_lr_ratio={optim.min_lr_ratio} must be below 1, where the schedule begins"
    cycles = optim.schedule_cycles
    if schedule is Schedule.cosine_with_restarts and cycles is not None and cycles % 1:
        yield f"optim.schedule_cycles={cycles} must be a whole number of restarts"
    too_small = optim.min_lr_ratio is None and optim.lr <= _LEAST_LR
    if schedule is Schedule.polynomial and too_small:
        yield (
            f"optim.schedule=polynomial ends at {_LEAST_LR}, which optim.lr={optim.lr} is not above; give "
            "optim.min_lr_ratio"
        )
    decay, steps = optim.decay_steps or 0, optim.steps
    if steps is not None and optim.warmup_steps + decay > steps:
        yield (
            f"optim.decay_steps={decay} and optim.warmup_steps={optim.warmup_steps} are more than "
            f"optim.steps={steps}"
        )
    if schedule in FOLLOWS_LOSS and optim.warmup_steps:
        yield f"optim.warmup_steps={optim.warmup_steps} would be ignored by optim.schedule={schedule.value}"
    if schedule in FOLLOWS_LOSS and not asked.goes_on:
        yield (
            f"optim.schedule={schedule.value} goes by the losses of evaluations on the way; give "
            "eval.every_steps or eval.every_epochs"
        )
    if optim.patience is not None and optim.patience < 1:
        yield f"optim.patience={optim.patience} must be at least 1"
    if optim.patience is not None and not asked.goes_on:
        yield (
            f"optim.patience={optim.patience} counts evaluations on the way; give eval.every_steps or "
            "eval.every_epochs"
        )


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


def _eval_problems(config: EvalConfig, optim: OptimConfig, *, answers: bool) -> Iterator[str]:
    default = EvalConfig()
    for name in (
        "every_steps",
        "batch_size",
        "generate_rows",
        "max_new_tokens",
        "base_domain_rows",
    ):
        value = getattr(config, name)
        if value is not None and value < 1:
            yield f"eval.{name}={value} must be at least 1"
    if not config.generate:
        for name in ("generate_rows",) if answers else ("generate_rows", "max_new_tokens"):
            if getattr(config, name) != getattr(default, name):
                yield f"eval.{name} would be ignored: eval.generate=false"
    if config.base_domain is not None and not config.before:
        yield (
            f"eval.base_domain={config.base_domain} measures what is forgotten since the base, and "
            "eval.before=false leaves the base out; use eval.before=true"
        )
    if config.base_domain is None and config.base_domain_rows != default.base_domain_rows:
        yield (
            f"eval.base_domain_rows={config.base_domain_rows} would be ignored: eval.base_domain, the text, "
            "is not given"
        )
    if config.base_domain == EMBEDDED_DOMAIN and config.base_domain_rows is None:
        yield (
            "eval.base_domain_rows=null asks for all documents, and eval.base_domain=embedded has no end; "
            "give a number"
        )
    yield from _task_problems(config)
    if config.keep_best and not config.goes_on:
        yield (
            "eval.keep_best=true needs eval.every_steps or eval.every_epochs: with one evaluation the last "
            "is the best"
        )
    too_late = (
        config.every_steps is not None
        and optim.steps is not None
        and config.every_steps > optim.steps
    )
    if too_late:
        yield f"eval.every_steps={config.every_steps} is above optim.steps={optim.steps}: it never comes"
    yield from _epoch_problems("eval", config.every_steps, config.every_epochs, optim.epochs)


def _task_problems(config: EvalConfig) -> Iterator[str]:
    """Yield what is wrong with the keys of lm-evaluation-harness's tasks."""
    default = EvalConfig()
    for name in ("num_fewshot", "limit", "apply_chat_template"):
        if not config.tasks and getattr(config, name) != getattr(default, name):
            yield f"eval.{name} would be ignored: eval.tasks names none"
    if len(set(config.tasks)) != len(config.tasks):
        yield f"eval.tasks={config.tasks} names a task twice"
    if any(not name.strip() for name in config.tasks):
        yield "eval.tasks holds an empty name"
    if config.num_fewshot is not None and config.num_fewshot < 0:
        yield f"eval.num_fewshot={config.num_fewshot} must be at least 0"
    limit = config.limit
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        yield f"eval.limit={limit} must be a number of documents, or a share of them between 0 and 1"
    elif limit is not None and limit >= 1 and limit % 1:
        yield f"eval.limit={limit:g} must be a whole number of documents, or a share below 1"


def _epoch_problems(
    section: str, steps: int | None, every: float | None, epochs: float | None
) -> Iterator[str]:
    """Yield what is wrong with a stretch of epochs that something is done after."""
    if every is None:
        return
    if steps is not None:
        yield (
            f"{section}.every_steps={steps} and {section}.every_epochs={every} say two things; give one"
        )
    if not (math.isfinite(every) and MOST_EPOCHS >= every > 0):
        yield f"{section}.every_epochs={every} must be a positive number of at most {MOST_EPOCHS:,.0f}"
    elif epochs is not None and every > epochs:
        yield f"{section}.every_epochs={every} is above optim.epochs={epochs}: it never comes"


def _machine_problems(config: RunConfig) -> Iterator[str]:
    device = config.resources.device
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        yield f"resources.device={device} must be auto, cpu, cuda or cuda:N"
        return
    wants_cuda = device.startswith("cuda")
    if wants_cuda and not visible_cuda_devices():
        yield f"resources.device={device} asks for a GPU, but none is visible; use cpu or auto"
    if config.optim.name.is_paged and resolved_device(device) == "cpu":
        unpaged = "adamw_8bit" if "8bit" in config.optim.name.value else "adamw"
        yield (
            f"optim={config.optim.name.value} pages its state between GPU and host, and this run is on "
            f"the CPU, where it would silently be {unpaged}; ask for optim={unpaged}"
        )
    if config.optim.offload_activations and resolved_device(device) == "cpu":
        yield (
            "optim.offload_activations=true moves what a GPU would keep to the host, and this run is on the "
            "CPU; optim.gradient_checkpointing=true alone is the same there"
        )
    threads = config.resources.threads
    if threads is not None and threads < 1:
        yield f"resources.threads={threads} must be at least 1"
    checkpoint = config.checkpoint
    yield from _epoch_problems(
        "checkpoint", checkpoint.every_steps, checkpoint.every_epochs, config.optim.epochs
    )
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
    if config.lora.trains_all:
        yield (
            f"lora=none trains all of the model in each process, and resources.shard={shard.value} divides "
            "it; use resources.shard=none"
        )
    elif init.from_dense:
        what = "rewrites the base" if config.lora.rewrites_base else "looks at the weights"
        yield (
            f"lora.init={init.value} {what}, of which no process has a whole layer with "
            f"resources.shard={shard.value}; use lora.init=default or gaussian, or resources.shard=none"
        )
    if config.lora.train_also:
        yield (
            f"lora.train_also={config.lora.train_also} trains a whole matrix, of which no process has more "
            f"than a share with resources.shard={shard.value}; use resources.shard=none"
        )
    if config.lora.method is LoraMethod.dora:
        yield (
            "lora.method=dora asks for norms of whole rows, of which no process has all with "
            f"resources.shard={shard.value}; use lora.method=lora, or resources.shard=none"
        )


def _names(formats: tuple[QuantFormat, ...]) -> str:
    return ", ".join(quant_format.value for quant_format in formats)
