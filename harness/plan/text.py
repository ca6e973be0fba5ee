"""A prediction as text: a table by part, what fits, and the base's modules. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence

from harness.plan.prediction import ModuleSize, Prediction
from harness.records.metrics import MEMORY_PARTS, METRICS, format_bytes, memory_part_name


def prediction_text(
    prediction: Prediction, margin: float, measured: Mapping[str, float | None]
) -> str:
    """Return the parts, the peak, and the peak with its margin.

    For a cohort one run's stand beside all runs'; what was `measured` of one run stands in a last column.
    """
    rows = list(_rows(prediction, margin, measured))
    return "\n".join(aligned(rows)) + "\n"


def _rows(
    prediction: Prediction, margin: float, measured: Mapping[str, float | None]
) -> Iterator[tuple[str, ...]]:
    together = prediction.cohort > 1
    head = ["part", "one run", f"{prediction.cohort} runs"] if together else ["part", "predicted"]
    yield (*head, "measured alone") if measured else tuple(head)

    def row(label: str, one: int | None, all_runs: int, metric: str = "") -> tuple[str, ...]:
        counts: list[int | None] = [one, all_runs] if together else [all_runs]
        if measured:
            found = measured.get(metric)
            counts.append(None if found is None else round(found))
        return (label, *("" if count is None else format_bytes(count) for count in counts))

    for part in MEMORY_PARTS:
        metric = memory_part_name(part)
        one, all_runs = prediction.parts[part], prediction.cohort_parts[part]
        yield row(METRICS[metric].label, one, all_runs, metric)
    if prediction.device == "cuda":
        if prediction.working_bytes:
            yield row("stacked adapters, summed gradients", None, prediction.working_bytes)
        if prediction.paged_bytes:
            yield row("paged out of the allocator", None, -prediction.paged_bytes)
        if prediction.library_bytes:
            yield row("workspace of cuBLAS", None, prediction.library_bytes)
        yield row("for a moment in a pass", None, prediction.transient_bytes)
    yield row("peak", None, prediction.peak_bytes, "memory/peak_bytes")
    with_margin = round(prediction.peak_bytes * (1 + margin))
    yield row(f"peak with {margin:.0%} margin", None, with_margin)


def base_text(modules: Sequence[ModuleSize]) -> str:
    """Return the base's tensors by kind of module: how many, weights, bytes, constants."""
    kinds: dict[str, list[ModuleSize]] = {}
    for module in modules:
        name = module.kind
        if module.kind == "block linear":
            name = module.name.rsplit(".", 1)[-1]
        kinds.setdefault(name, []).append(module)
    rows: list[tuple[str, ...]] = [("base", "modules", "weights", "bytes", "constants")]
    for kind, members in kinds.items():
        rows.append(
            (
                kind,
                str(len(members)),
                f"{sum(member.logical_params for member in members):,}",
                format_bytes(sum(member.weight_bytes for member in members)),
                format_bytes(sum(member.constant_bytes for member in members)),
            )
        )
    return "\n".join(aligned(rows)) + "\n"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return rows as lines: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def duration(seconds: float | None) -> str:
    """Print a duration in the units that a person plans in; — where it is not known."""
    if seconds is None:
        return "—"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
