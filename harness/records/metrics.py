"""Every metric's name, unit, direction, digits and one-line definition, once. Imports no package.

Names are `group/name_unit`. Measuring code writes these names and tables read them. What
lm-evaluation-harness measures is `eval/TASK/METRIC` or `eval/TASK/METRIC/FILTER`, in its words: of these only
the form is known.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Direction(Enum):
    """Which way is better."""

    minimize = "minimize"
    maximize = "maximize"
    neither = "neither"

    @property
    def arrow(self) -> str:
        """An arrow to the better side, preceded by a space; empty where neither is."""
        return {"minimize": " ↓", "maximize": " ↑", "neither": ""}[self.value]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: how it is called, printed and defined."""

    name: str
    label: str
    unit: str
    direction: Direction
    digits: int
    definition: str


_DOWN, _UP, _NONE = Direction.minimize, Direction.maximize, Direction.neither

# fmt: off
_ALL = (
    # Every step, into metrics.jsonl.
    Metric("train/loss", "train loss", "nats/token", _DOWN, 4,
           "Mean cross-entropy over the positions that carry loss in one optimizer step's batch."),
    Metric("train/grad_norm", "gradient norm", "", _NONE, 3,
           "L2 norm of this run's gradient before clipping."),
    Metric("train/learning_rate", "learning rate", "", _NONE, 6, "Learning rate used by the step."),
    Metric("train/loss_scale", "loss scale", "", _NONE, 0,
           "What a run in float16 multiplied its loss by before the backward pass; a step whose gradient "
           "norm is then infinite moves nothing, and halves it."),
    Metric("train/epoch", "epoch", "epochs", _NONE, 2, "Training rows seen over rows in the set."),
    Metric("cohort/runs", "runs in the pass", "", _NONE, 0, "Runs that shared the passes of the step."),
    Metric("cohort/token_share", "share of the pass", "fraction", _NONE, 3,
           "This run's share of all positions in the passes of the step; 1 for a run alone."),
    Metric("cohort/energy_joules", "energy", "J", _DOWN, 0,
           "Energy of the GPU during the run's training passes, by its share of their positions (NVML)."),
    Metric("device/utilisation", "GPU utilisation", "fraction", _UP, 2,
           "Share of the last second in which a kernel ran, of whatever process (NVML)."),
    Metric("device/power_watts", "GPU power", "W", _DOWN, 0,
           "Power that the whole GPU drew over the last second (NVML)."),
    # Held-out quality; the record keeps each with its standard error and n under `evals`.
    Metric("eval/loss", "eval loss", "nats/token", _DOWN, 4,
           "Mean cross-entropy over held-out positions that carry loss."),
    Metric("eval/perplexity", "perplexity", "", _DOWN, 3, "exp(eval/loss), per token that carries loss."),
    Metric("eval/bits_per_byte", "bits per byte", "bits/byte", _DOWN, 4,
           "Cross-entropy in bits over held-out positions that carry loss, per UTF-8 byte of their text: "
           "comparable between tokenizers."),
    Metric("eval/token_accuracy", "token accuracy", "fraction", _UP, 4,
           "Share of held-out positions whose most likely token is the right one."),
    Metric("eval/exact_match", "exact match", "fraction", _UP, 3,
           "Share of greedily generated answers equal to the reference after stripping white space."),
    Metric("eval/rouge_l", "ROUGE-L", "fraction", _UP, 3,
           "Mean longest-common-subsequence F1 (Lin 2004) of greedily generated answers; words of any "
           "script."),
    Metric("eval/base_domain_loss", "loss on the base's domain", "nats/token", _DOWN, 4,
           "Mean cross-entropy over held-out text of what the base was trained on (eval.base_domain)."),
    Metric("eval/base_domain_bits_per_byte", "bits per byte on the base's domain", "bits/byte", _DOWN, 4,
           "The same in bits per UTF-8 byte of the text."),
    Metric("eval/forgetting_bits_per_byte", "forgetting", "bits/byte", _DOWN, 4,
           "Rise of the bits per byte on the base's domain since before training, paired by document; below "
           "0 nothing was forgotten and something learnt."),
    Metric("eval/choice_accuracy", "choice accuracy", "fraction", _UP, 3,
           "Share of multiple-choice questions whose right choice has the highest log-likelihood, of "
           "ARC's texts per character (lm-evaluation-harness's acc_norm)."),
    Metric("eval/choice_accuracy_raw", "choice accuracy, raw", "fraction", _UP, 3,
           "Share of multiple-choice questions whose right choice has the highest log-likelihood, "
           "whatever its length (lm-evaluation-harness's acc)."),
    # Memory. Parts are exact tensor bytes; the peak's source depends on the device.
    Metric("memory/peak_bytes", "peak memory", "bytes", _DOWN, 0,
           "Training peak: the CUDA allocator's on a GPU; the sum of the parts below on a CPU. In a "
           "series: the process's so far, with every run in it."),
    Metric("memory/allocated_bytes", "allocated", "bytes", _DOWN, 0,
           "Tensors in memory after the step, of all runs in the process: the CUDA allocator's count, or "
           "on a CPU base, adapters, gradients and optimizers, to the byte."),
    Metric("memory/reserved_bytes", "reserved", "bytes", _DOWN, 0,
           "What the CUDA allocator holds of the GPU after the step, in use or not."),
    Metric("memory/resident_bytes", "resident", "bytes", _DOWN, 0,
           "Resident set of the process after the step, libraries included."),
    Metric("memory/load_peak_bytes", "load peak", "bytes", _DOWN, 0,
           "Peak while loading the base: the CUDA allocator's, or the process's growth on a CPU."),
    Metric("memory/eval_peak_bytes", "eval peak", "bytes", _DOWN, 0,
           "Peak while evaluating: the CUDA allocator's, or the process's resident peak on a CPU."),
    Metric("memory/process_peak_bytes", "process peak", "bytes", _DOWN, 0,
           "Highest resident set of the whole process while training, libraries included."),
    Metric("memory/base_bytes", "base", "bytes", _DOWN, 0,
           "Frozen weights and buffers as stored (packed where quantized), without constants."),
    Metric("memory/quant_constants_bytes", "quantization constants", "bytes", _DOWN, 0,
           "Scales, offsets, code tables and second-level constants of the quantized weights."),
    Metric("memory/adapter_bytes", "adapter", "bytes", _DOWN, 0,
           "This adapter's parameters; in full fine-tuning the float32 copy beside 16-bit weights, none "
           "where the base's own float32 weights are trained."),
    Metric("memory/gradient_bytes", "gradients", "bytes", _DOWN, 0, "Gradients of what is trained, float32."),
    Metric("memory/optimizer_bytes", "optimizer", "bytes", _DOWN, 0,
           "Optimizer state of what is trained, tables included."),
    Metric("memory/activation_bytes", "activations", "bytes", _DOWN, 0,
           "Distinct storages kept from forward to backward of one micro-batch, parameters excluded."),
    Metric("memory/paged_bytes", "paged", "bytes", _DOWN, 0,
           "Managed memory that moved between GPU and host, both ways together, while a run alone with a "
           "paged optimizer trained (CUPTI)."),
    # Throughput: over the steps after the warm-up (see harness.measure.throughput).
    Metric("throughput/input_tokens_per_second", "tokens/s", "tokens/s", _UP, 0,
           "All positions fed to the model, padding included, over the steps' wall-clock. In a series: "
           "this run's positions over the time of the passes that it was in."),
    Metric("throughput/loss_tokens_per_second", "loss tokens/s", "tokens/s", _UP, 0,
           "Positions that carry loss over the steps' wall-clock. In a series as the tokens above."),
    Metric("throughput/model_flops_utilisation", "MFU", "fraction", _UP, 3,
           "Operations of the step (4 a frozen weight and token, the head's at positions with loss, 6 a "
           "trained one's) over time and the GPU's published dense bf16 rate."),
    Metric("throughput/step_ms", "step time", "ms", _DOWN, 1,
           "Median wall-clock of one optimizer step after the warm-up. In a series: of the passes of "
           "this step, whoever shared them."),
    Metric("throughput/floor_ms", "floor", "ms", _NONE, 2,
           "Least time of one optimizer step of this run alone: products with frozen weights at the "
           "device's measured rates, bytes of decoding at its measured bandwidth."),
    Metric("device/step_joules", "energy of a step", "J", _DOWN, 2,
           "Energy of the GPU over the training passes of a run alone, per optimizer step (NVML)."),
    # What the configuration is.
    Metric("adapter/trainable_params", "trainable parameters", "", _NONE, 0,
           "Elements that are trained: the adapter's, or in full fine-tuning all of the model's."),
    Metric("base/logical_params", "base parameters", "", _NONE, 0,
           "Elements of the frozen weights before packing, tied weights once."),
    Metric("base/bits_per_param", "bits/param", "bits", _DOWN, 2,
           "Packed weights and every constant of the quantized linear layers, over logical weights."),
    Metric("base/packed_share", "packed share of the blocks", "", _NONE, 3,
           "Weights of the blocks in layers that are stored in the quantization's format, over all of them."),
    Metric("adapter/adapted_share", "adapted share of the blocks", "", _NONE, 3,
           "Weights of the blocks in layers that the adapter changes, over all of them."),
)
# fmt: on

_TASK_DOWN = frozenset(
    {
        "bits_per_byte",
        "brier_score",
        "byte_perplexity",
        "perplexity",
        "ter",
        "word_perplexity",
    }
)
_TASK_UP = frozenset(
    {
        *("acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "bleu", "chrf", "chrf++"),
        *("em", "exact_match", "f1", "inst_level_loose_acc", "inst_level_strict_acc", "likelihood"),
        *("mc1", "mc2", "mcc", "pass@1", "prompt_level_loose_acc", "prompt_level_strict_acc"),
        *("rouge1", "rouge2", "rougeL"),
    }
)
"""lm-evaluation-harness's metrics by their direction; of others none is known."""
_TASK_PARTS = (3, 4)
"""Words between slashes in the name of a task's metric."""


def is_task_metric(name: object) -> bool:
    """Whether a name is that of a metric of one of lm-evaluation-harness's tasks."""
    if not isinstance(name, str) or not name.startswith("eval/"):
        return False
    parts = name.split("/")
    return len(parts) in _TASK_PARTS and all(parts)


def task_metric(task: str, metric: str, chosen_by: str) -> str:
    """Return the name of a task's metric; `chosen_by` is the filter of its answers, or `none`."""
    words = [task, metric] if chosen_by == "none" else [task, metric, chosen_by]
    return "/".join(["eval", *(word.replace("/", "_") for word in words)])


def _of_task(name: str) -> Metric:
    _, task, metric, *chosen_by = name.split("/")
    direction = _UP if metric in _TASK_UP else _DOWN if metric in _TASK_DOWN else _NONE
    by = f" of answers by {chosen_by[0]}" if chosen_by else ""
    return Metric(
        name,
        " ".join([task, metric, *chosen_by]),
        "",
        direction,
        4,
        f"{metric}{by} of lm-evaluation-harness's task {task}.",
    )


class MetricTable(dict[str, Metric]):
    """The metrics by name; one of a task is there as soon as it is asked for, and is not walked over."""

    def __missing__(self, name: str) -> Metric:
        if not is_task_metric(name):
            raise KeyError(name)
        return _of_task(name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or is_task_metric(name)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return the given names in the order of the table, those of tasks after the others."""
        given = set(names)
        return [name for name in self if name in given] + sorted(given - self.keys())


METRICS = MetricTable({metric.name: metric for metric in _ALL})

COHORT_SHARES = frozenset(
    {
        "memory/peak_bytes",
        "memory/load_peak_bytes",
        "memory/eval_peak_bytes",
        "memory/process_peak_bytes",
        "memory/activation_bytes",
        "memory/paged_bytes",
        "throughput/input_tokens_per_second",
        "throughput/loss_tokens_per_second",
        "throughput/step_ms",
        "throughput/model_flops_utilisation",
        "device/step_joules",
    }
)
"""What a run in a cohort shares with the others, so that only a run alone or a probe can measure it; the
exact tensor bytes (base, adapter, …) are each run's own in a cohort, too."""

MEMORY_PARTS = ("base", "quant_constants", "adapter", "gradient", "optimizer", "activation")


SERIES = frozenset(
    {
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/loss_scale",
        "train/epoch",
        "throughput/step_ms",
        "throughput/input_tokens_per_second",
        "throughput/loss_tokens_per_second",
        "throughput/model_flops_utilisation",
        "memory/allocated_bytes",
        "memory/peak_bytes",
        "memory/reserved_bytes",
        "memory/resident_bytes",
        "device/utilisation",
        "device/power_watts",
        "cohort/runs",
        "cohort/token_share",
        "eval/loss",
        "eval/perplexity",
        "eval/bits_per_byte",
        "eval/token_accuracy",
        "eval/exact_match",
        "eval/rouge_l",
        "eval/choice_accuracy",
        "eval/choice_accuracy_raw",
        "eval/base_domain_loss",
        "eval/base_domain_bits_per_byte",
        "eval/forgetting_bits_per_byte",
    }
)
"""What stands in the rows of metrics.jsonl: of every step, or of those after which something was measured."""

EVERY_STEP = frozenset(
    {
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "train/epoch",
        "throughput/step_ms",
        "throughput/input_tokens_per_second",
        "throughput/loss_tokens_per_second",
        "memory/allocated_bytes",
        "memory/peak_bytes",
        "memory/resident_bytes",
        "cohort/runs",
        "cohort/token_share",
    }
)
"""What every row of every run has, on whatever device."""


def memory_part_name(part: str) -> str:
    """Return the metric name of one part of the peak, e.g. `memory/base_bytes`."""
    name = f"memory/{part}_bytes"
    assert name in METRICS, name
    return name


def format_value(name: str, value: float | None) -> str:
    """Print one value of the metric `name` with its digits; bytes in MiB or GiB; a missing one as —."""
    if value is None:
        return "—"
    metric = METRICS[name]
    if metric.unit == "bytes":
        return format_bytes(value)
    return f"{value:,.{metric.digits}f}"


def format_bytes(count: float) -> str:
    """Print a number of bytes in the largest binary unit that leaves at least 1."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
