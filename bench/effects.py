"""`python -m bench.effects STUDY…`: the effects that the embedded base shows, with seeds and intervals.

Studies: rounding, tasks, rule, facts, targets. Each writes bench/results/effects_STUDY.json and prints a
table. Runs are kept under bench/.work, so a study that was stopped goes on where it was. `python -m
bench.effects card` puts the tables of all results into the card of the embedded base.

Intervals are 95 % t-intervals over seeds for fine-tuning; for rounding they are normal intervals of the
paired difference to the unquantized base over held-out rows.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scipy import stats

from harness.commands.run import run
from harness.config.compose import compose_run
from harness.config.schema import QuantConfig, QuantFormat
from harness.records.record import Record, RunStatus

if TYPE_CHECKING:
    from harness.evals.result import EvalResult

OUT = "bench/.work"
CARD = Path("harness/embedded/model/README.md")
CARD_HEADING = "## Effects of fine-tuning and rounding"
HELD_OUT_ROWS = 8192
"""Rows of 128 tokens that rounded bases are scored on: enough to tell NF4 from asymmetric int4."""
SEEDS = (0, 1, 2)
RANKS = (1, 2, 4, 8, 16, 32, 64)
COMMON = ("eval.split=test", "tracker=none", f"paths.out={OUT}", "quant=nf4_dq")
Table = list[list[str]]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval (n - 1 degrees of freedom)."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(half)


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Print mean ± half-width."""
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


# Rounding ----------------------------------------------------------------------------------------


def rounding() -> tuple[Table, object]:
    """Perplexity of held-out text after rounding, without training, beside the error of the weights."""
    import torch

    from harness.base.blocks import linear_modules
    from harness.base.build import build_base
    from harness.base.quick_imports import quiet_libraries
    from harness.base.source import find_model, model_fingerprint
    from harness.config.schema import ModelConfig
    from harness.evals.result import ratio_result
    from pretraining.measure import held_out_rows, token_losses
    from pretraining.rows import TokenKind

    quiet_libraries()
    config, cpu = ModelConfig(), torch.device("cpu")
    source = find_model(config)
    fingerprint = model_fingerprint(source, Path(OUT) / "fingerprints.json")
    rows = None
    dense: dict[str, torch.Tensor] = {}
    table: Table = [
        [
            "quant",
            "block",
            "perplexity",
            "loss added",
            "loss above NF4 of this block size",
            "weights' squared error",
        ]
    ]
    unquantized: list[float] = []
    of_nf4: list[float] = []
    found = []
    for quant in _rounded():
        base = build_base(
            source, config, quant, fingerprint=fingerprint, device=cpu, cache=Path(OUT) / "cache"
        )
        rows = rows or held_out_rows(base.tokenizer, HELD_OUT_ROWS)
        sums: list[float] = []
        counts: list[int] = []
        with torch.no_grad():
            for start in range(0, len(rows.tokens_RT), 32):
                part = rows.rows(slice(start, start + 32))
                losses = token_losses(base.model, part)
                scored = part.kinds_RT[:, 1:] != TokenKind.UNSCORED
                sums += (losses * scored).sum(dim=1).tolist()
                counts += scored.sum(dim=1).tolist()
        unquantized = unquantized or sums
        if quant.format is QuantFormat.nf4 and not quant.double_quant:
            of_nf4 = sums
        loss = ratio_result(sums, counts)
        added = _paired(sums, unquantized, counts)
        above = _paired(sums, of_nf4, counts) if of_nf4 not in ([], sums) else None
        error = total = 0.0
        for name, module in linear_modules(base.model):
            assert isinstance(module, torch.nn.Linear)
            weight = module(torch.eye(module.in_features)).detach().T
            dense.setdefault(name, weight)
            error += (weight - dense[name]).square().sum().item()
            total += dense[name].square().sum().item()
        double = "_dq" if quant.double_quant else ""
        table.append(
            [
                f"{quant.format.value}{double}",
                f"{quant.block_size}" if quant.format not in _WITHOUT_BLOCKS else "—",
                f"{math.exp(loss.value):.4f}",
                _shown_difference(added),
                "—" if above is None else _shown_difference(above),
                f"{error / total:.5f}",
            ]
        )
        found.append([*table[-1], loss.value, added.value, added.standard_error, added.n])
    return table, found


def _paired(sums: list[float], others: list[float], counts: list[int]) -> "EvalResult":
    from harness.evals.result import ratio_result

    return ratio_result([a - b for a, b in zip(sums, others, strict=True)], counts)


def _shown_difference(result: "EvalResult") -> str:
    assert result.standard_error is not None
    return f"{result.value:.5f} ± {1.96 * result.standard_error:.5f}"


_WITHOUT_BLOCKS = (QuantFormat.none, QuantFormat.int8)


def _rounded() -> Iterable[QuantConfig]:
    for quant_format in _WITHOUT_BLOCKS:
        yield QuantConfig(format=quant_format)
    for block_size in (32, 64, 128):
        for quant_format in (
            QuantFormat.nf4,
            QuantFormat.int4_asym,
            QuantFormat.int4,
            QuantFormat.fp4,
            QuantFormat.fp4_e2m1,
            QuantFormat.fp4_e3m0,
        ):
            for double in (False, True):
                yield QuantConfig(format=quant_format, double_quant=double, block_size=block_size)


# Fine-tuning -------------------------------------------------------------------------------------


def trained(grid: Sequence[Sequence[str]]) -> list[Record]:
    """Train one run for every list of overrides; records in the order of the grid."""
    configs = [compose_run([*COMMON, *overrides]) for overrides in grid]
    records = [run(config)[0] for config in configs]
    bad = [f"{r.run_id}: {r.status.value}" for r in records if r.status is RunStatus.failed]
    assert not bad, bad
    return records


def exact_match(record: Record, phase: str = "after") -> float:
    """Exact match of a run; a run that diverged answers nothing right."""
    if phase not in record.evals:
        return 0.0
    return record.evals[phase]["eval/exact_match"].value


def tasks() -> tuple[Table, object]:
    """Exact match and loss before and after, for each task, at its default settings."""
    table: Table = [["data", "exact match before", "after", "loss before", "after"]]
    found = {}
    for task in ("rule", "dialect", "facts"):
        records = trained([[f"data={task}", *SETTINGS[task], f"seed={s}"] for s in SEEDS])
        em = [[exact_match(r, phase) for r in records] for phase in ("before", "after")]
        loss = [[r.evals[p]["eval/loss"].value for r in records] for p in ("before", "after")]
        table.append(
            [task, f"{em[0][0]:.3f}", shown(em[1]), f"{loss[0][0]:.3f}", shown(loss[1], 4)]
        )
        found[task] = {"exact_match": em, "loss": loss}
    return table, found


def over_ranks(task: str) -> tuple[Table, object]:
    """Exact match over ranks, each at its own best learning rate, chosen on the validation split."""
    table: Table = [["rank", "parameters", "learning rate", "exact match", "loss"]]
    found = {}
    for rank in RANKS:
        chosen = best_rate([f"data={task}", *SETTINGS[task], f"lora.rank={rank}"])
        grid = [f"data={task}", *SETTINGS[task], f"lora.rank={rank}", f"optim.lr={chosen}"]
        records = trained([[*grid, f"seed={seed}"] for seed in SEEDS])
        em = [exact_match(record) for record in records]
        loss = [record.evals["after"]["eval/loss"].value for record in records]
        size = records[0].metrics["adapter/trainable_params"]
        table.append([f"{rank}", f"{size:,.0f}", f"{chosen:g}", shown(em), shown(loss, 4)])
        found[rank] = {"lr": chosen, "parameters": size, "exact_match": em, "loss": loss}
    return table, found


RATES = (2e-3, 5e-3, 1.2e-2)
BEYOND = {2e-3: (8e-4, 3e-4), 1.2e-2: (3e-2, 7e-2)}
"""Further rates, tried where the lowest or the highest is best, until the best has worse neighbours."""


def best_rate(overrides: Sequence[str]) -> float:
    """Return the learning rate with the lowest validation loss, on a seed that is not used again."""

    def loss(record: Record) -> float:
        after = record.evals.get("after")
        return float("inf") if after is None else after["eval/loss"].value

    grid = [[*overrides, *_CHOICE, f"optim.lr={rate}"] for rate in RATES]
    losses = dict(zip(RATES, map(loss, trained(grid)), strict=True))
    best = min(losses, key=lambda rate: losses[rate])
    for rate in BEYOND.get(best, ()):
        losses[rate] = loss(trained([[*overrides, *_CHOICE, f"optim.lr={rate}"]])[0])
        if losses[rate] >= losses[best]:
            break
        best = rate
    return best


_CHOICE = ("seed=100", "eval.split=validation", "eval=loss")


def targets() -> tuple[Table, object]:
    """Target sets at about equal parameters, each at its own best learning rate, on `facts`."""
    from harness.base.build import inspect_model
    from harness.base.source import find_model
    from harness.base.targets import adapted_layers
    from harness.config.schema import ModelConfig

    linears = inspect_model(find_model(ModelConfig()), ModelConfig()).linears

    def size(name: str, rank: int) -> int:
        lora = compose_run([f"lora={name}", f"lora.rank={rank}"]).lora
        return sum(rank * (s.in_features + s.out_features) for s in adapted_layers(lora, linears))

    budget = size("all_linear", TARGET_RANK)
    table: Table = [["targets", "rank", "parameters", "learning rate", "exact match", "loss"]]
    found = {}
    for name in ("qv", "attention", "mlp", "all_linear"):
        rank = max(1, round(budget / size(name, 1)))
        settings = ["data=facts", *SETTINGS["facts"], f"lora={name}", f"lora.rank={rank}"]
        chosen = best_rate(settings)
        records = trained([[*settings, f"optim.lr={chosen}", f"seed={s}"] for s in SEEDS])
        em = [exact_match(record) for record in records]
        loss = [record.evals["after"]["eval/loss"].value for record in records]
        table.append(
            [name, f"{rank}", f"{size(name, rank):,}", f"{chosen:g}", shown(em), shown(loss, 4)]
        )
        found[name] = {"rank": rank, "lr": chosen, "exact_match": em, "loss": loss}
    return table, found


TARGET_RANK = 8
SETTINGS: dict[str, tuple[str, ...]] = {
    "rule": ("optim.steps=120",),
    "dialect": ("optim.steps=120",),
    "facts": ("data.train_rows=2048", "optim.steps=600", "optim.batch_size=32"),
}

STUDIES: dict[str, Callable[[], tuple[Table, object]]] = {
    "rounding": rounding,
    "tasks": tasks,
    "rule": lambda: over_ranks("rule"),
    "facts": lambda: over_ranks("facts"),
    "targets": targets,
}


WHAT = {
    "tasks": "Each task at rank 8, learning rate 5e-3, nf4_dq; `facts` for 600 steps of 32 rows, the others "
    "120 of 16; test split, seeds 0, 1, 2.",
    "facts": "`facts` over ranks: 512 associations, 600 steps of 32 rows; each rank at the best of "
    "three to five learning rates, chosen by validation loss on another seed. Test split, seeds 0, 1, 2.",
    "rule": "`rule` over ranks: 120 steps of 16 rows, learning rates chosen in the same way.",
    "targets": "`facts` over target modules at about equal parameters, learning rates chosen likewise.",
    "rounding": f"Perplexity on {HELD_OUT_ROWS:,} held-out rows after rounding, no training; the loss that "
    "rounding adds is paired over rows; the squared error is relative to the weights' own square.",
}


def main(names: Sequence[str]) -> None:
    """Run the named studies, or all; or write the card."""
    if list(names) == ["card"]:
        return write_card()
    for name in names or STUDIES:
        table, found = STUDIES[name]()
        result = {"study": name, "what": WHAT[name], "table": table, "found": found}
        _results(name).write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{WHAT[name]}\n\n{markdown(table)}")
    return None


def _results(name: str) -> Path:
    return Path(f"bench/results/effects_{name}.json")


def markdown(table: Table) -> str:
    """Return a table as Markdown, numbers to the right."""
    rule = ["---", *(["---:"] * (len(table[0]) - 1))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (table[0], rule, *table[1:])) + "\n"


def write_card() -> None:
    """Put the tables of the results on disk at the end of the card."""
    parts = [
        CARD_HEADING,
        "Exact match is of greedy answers, losses are in nats per token, ± is half of a 95 % t-interval "
        "over seeds (of a normal interval over rows, for rounding). A learning rate's choice sees the "
        "validation split only.",
    ]
    for name in WHAT:
        if _results(name).exists():
            result = json.loads(_results(name).read_text())
            command = f"`python -m bench.effects {name}`"
            parts += [f"{result['what']} {command}:", markdown(result["table"]).rstrip()]
    text = CARD.read_text().split(CARD_HEADING)[0].rstrip()
    CARD.write_text(text + "\n\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
