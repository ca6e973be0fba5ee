"""Which tables a sweep gets: those of any sweep (confirmation, search, cost), and its own where `sweeps/` has
its question."""

from collections.abc import Iterable, Sequence

from analysis.frame import Role, Row, metric_key
from analysis.sources import SweepData
from analysis.spec import Spec
from analysis.task_scores import task_columns
from harness.plan.probe import costs_nothing
from harness.records.metrics import COHORT_SHARES, Direction
from harness.records.record import MeasuredIn

SEARCH_LINES = 20
"""Lines of a search that is no grid; a grid is shown whole."""

_QUALITY = (
    "eval/loss",
    "eval/exact_match",
    "eval/rouge_l",
    "eval/choice_accuracy",
    "eval/token_accuracy",
    "eval/forgetting_bits_per_byte",
)
_COST = (
    "memory/peak_bytes",
    "throughput/step_ms",
    "throughput/input_tokens_per_second",
    "adapter/trainable_params",
    "base/bits_per_param",
    "memory/base_bytes",
    "memory/adapter_bytes",
    "memory/optimizer_bytes",
)


def specs_for(sweep: SweepData) -> list[Spec]:
    """Return the tables of a sweep, the confirmation first; none for which it has no run."""
    makers = (confirmation_spec, search_spec, cost_spec)
    default = [spec for maker in makers if (spec := maker(sweep)) is not None]
    own = OF_SWEEP.get(sweep.name, ()) if sweep.rows_of(Role.search) else ()
    verdict = [spec for spec in default if spec.role is Role.confirmation]
    return [*verdict, *own, *(spec for spec in default if spec not in verdict)]


def confirmation_spec(sweep: SweepData) -> Spec | None:
    """Return the verdict: the confirmed cells on fresh seeds, each against the best of them."""
    rows = sweep.rows_of(Role.confirmation)
    if not rows:
        return None
    return Spec(
        name="confirmation",
        title=f"{sweep.question or sweep.name} Confirmed on fresh seeds.",
        rows=_axes_of(sweep, rows),
        columns=_quality(sweep, rows),
        role=Role.confirmation,
        best_first=True,
        against_best=True,
    )


def search_spec(sweep: SweepData) -> Spec | None:
    """Return the trials: a grid as its axes, another search by trial, the best first."""
    rows = [row for row in sweep.rows_of(Role.search) if row["trial"] is not None]
    if not rows:
        return None
    grid = sweep.method == "grid"
    axes = _axes_of(sweep, rows)
    front = {metric: Direction(word) for metric, word in sweep.objectives.items()}
    return Spec(
        name="search",
        title=f"{sweep.name}: trials of the search",
        rows=axes if grid else tuple(dict.fromkeys(("trial", *axes))),
        columns=_quality(sweep, rows),
        role=Role.search,
        best_first=not grid,
        limit=None if grid else SEARCH_LINES,
        front=front if len(front) > 1 else {},
    )


def cost_spec(sweep: SweepData) -> Spec | None:
    """Return what each configuration costs, by the axes that change it."""
    rows = [row for row in sweep.rows_of(Role.search) if row["trial"] is not None]
    axes = tuple(axis for axis in _axes_of(sweep, rows) if not _costs_nothing(sweep, axis))
    alone = [row for row in sweep.rows if row["measured_in"] is not MeasuredIn.cohort]
    columns = [metric for metric in _COST if metric not in COHORT_SHARES]
    measured = _measured([*rows, *alone], _COST if alone else columns)
    if not axes or not measured:
        return None
    return Spec(
        name="cost",
        title=f"{sweep.name}: what a configuration costs",
        rows=axes,
        columns=measured,
        role=Role.search,
    )


def _axes_of(sweep: SweepData, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the axes that these rows' points have, or `trial` where there are none."""
    found = {axis for row in rows for axis in row["point"]}
    return tuple(axis for axis in sweep.axes if axis in found) or ("trial",)


def _quality(sweep: SweepData, rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the objectives, whatever was measured, and the other scores that were."""
    scores = _measured(rows, [name for name in _QUALITY if name not in sweep.objectives])
    tasks = [name for name in task_columns(list(rows)) if name not in sweep.objectives]
    return (*sweep.objectives, *scores, *tasks)


def _measured(rows: Iterable[Row], metrics: Sequence[str]) -> tuple[str, ...]:
    found = {key for row in rows for key, value in row.items() if value is not None and "/" in key}
    return tuple(metric for metric in metrics if metric_key(metric) in found)


def _costs_nothing(sweep: SweepData, axis: str) -> bool:
    """Whether nothing that an axis changes changes the cost of a step."""
    entry = (sweep.asked.get("space") or {}).get(axis)
    cases = entry.get("cases") if isinstance(entry, dict) else None
    overrides = [override for case in cases.values() for override in case] if cases else [axis]
    return all(costs_nothing(each.partition("=")[0].lstrip("+~")) for each in overrides)


_FREE = ("lora.rank", "lora.alpha_over_rank", "optim.lr", "quant.double_quant")
OF_SWEEP: dict[str, tuple[Spec, ...]] = {
    "alpha": (
        Spec(
            name="alpha_by_learning_rate",
            title="Loss by alpha at rank 8, for each learning rate",
            rows=("alpha",),
            across="optim.lr",
            columns=("eval/loss",),
            role=Role.search,
            where={"lora.rank": (8,)},
        ),
        Spec(
            name="rank_at_fixed_alpha_over_rank",
            title="Loss by rank at alpha/rank 2, for each learning rate",
            rows=("lora.rank",),
            across="optim.lr",
            columns=("eval/loss",),
            role=Role.search,
            where={"alpha/rank": (2.0,)},
        ),
    ),
    "demo": (
        Spec(
            name="rank_for_each_format",
            title="Loss by format of the base, for each LoRA rank",
            rows=("quant",),
            across="lora.rank",
            columns=("eval/loss",),
            role=Role.search,
        ),
    ),
    "double_quant": (
        Spec(
            name="double_quant",
            title="Double quantization against none, each format at its best learning rate",
            rows=("quant.format", "quant.double_quant"),
            columns=("eval/loss", "eval/exact_match", "base/bits_per_param"),
            role=Role.search,
            choose=("optim.lr",),
            against={"quant.double_quant": False},
            published=("qlora_mmlu",),
        ),
    ),
    "full_fine_tuning": (
        Spec(
            name="full_fine_tuning",
            title="Adapters against full fine-tuning, each at its best learning rate",
            rows=("trained",),
            columns=("eval/loss", "eval/exact_match", "adapter/trainable_params"),
            role=Role.search,
            choose=("optim.lr",),
            against={"trained": "all_parameters"},
        ),
    ),
    "joint": (
        Spec(
            name="best_by_targets",
            title="The best trial of each target set",
            rows=("lora",),
            columns=("eval/loss", "memory/peak_bytes"),
            role=Role.search,
            choose=("quant.format", *_FREE),
        ),
        Spec(
            name="best_by_format",
            title="The best trial of each format of the base",
            rows=("quant.format",),
            columns=("eval/loss", "memory/peak_bytes"),
            role=Role.search,
            choose=("lora", *_FREE),
        ),
    ),
    "nf4_vs_int4": (
        Spec(
            name="formats_against_nf4",
            title="Formats against NF4 at the same block size, each at its best learning rate",
            rows=("quant", "quant.block_size"),
            columns=("eval/loss", "before.eval/loss", "base/bits_per_param"),
            role=Role.search,
            choose=("optim.lr",),
            against={"quant": "nf4"},
            published=("qlora_rounding",),
        ),
    ),
    "rank": (
        Spec(
            name="rank",
            title="Loss and exact match by rank, each at its best learning rate",
            rows=("lora.rank",),
            columns=("eval/loss", "eval/exact_match", "adapter/trainable_params"),
            role=Role.search,
            choose=("optim.lr",),
            published=("lora_rank_all_attention", "lora_rank_query_value"),
        ),
        Spec(
            name="rank_by_learning_rate",
            title="Loss by rank, for each learning rate",
            rows=("lora.rank",),
            across="optim.lr",
            columns=("eval/loss",),
            role=Role.search,
        ),
    ),
    "rank_by_format": (
        Spec(
            name="rank_by_format",
            title="Formats and ranks, each at its best learning rate",
            rows=("quant", "lora.rank"),
            columns=("eval/loss", "eval/exact_match", "base/bits_per_param"),
            role=Role.search,
            choose=("optim.lr",),
            against={"quant": "nf4"},
        ),
    ),
    "targets": (
        Spec(
            name="targets",
            title="Target modules at equal parameter budget, each at its best learning rate",
            rows=("targets",),
            columns=("eval/loss", "eval/exact_match", "adapter/trainable_params"),
            role=Role.search,
            choose=("optim.lr",),
            against={"targets": "all_linear"},
            published=("lora_targets",),
        ),
    ),
}
"""Tables beside those of any sweep, by the name of the sweep."""
