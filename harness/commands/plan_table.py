"""`harness plan --table`: adapter sizes over ranks and models, by real counts and by the popular toy."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from harness.base.quick_imports import quick_imports
from harness.config.schema import LoraConfig, ModelConfig, QuantConfig, QuantFormat
from harness.errors import RequestError
from harness.plan.parameter_table import (
    GPT3,
    GPT3_RANKS,
    RANKS,
    SHAPES,
    TOY_RANKS,
    TOY_SIZES,
    CountedModel,
    counted_model,
    table_rows,
    toy_rows,
    worked_example,
)
from harness.plan.settings import PlanSettings, split_settings

if TYPE_CHECKING:
    from harness.plan.method_table import MethodBytes
    from harness.plan.model import PlannedModel


def plan_table(words: Sequence[str], *, as_json: bool) -> int:
    """Print the tables of the shapes that `plan.shape` names, or of `model=`; returns the exit code."""
    settings, overrides = split_settings(words)
    with quick_imports():
        return _plan_table(overrides, settings, as_json=as_json)


def _plan_table(overrides: Sequence[str], settings: PlanSettings, *, as_json: bool) -> int:
    from harness.commands.plan import planned_config
    from harness.plan.method_table import TEN_BILLION, formulas, method_rows, text_of_ten_billion

    ranks = tuple(settings.ranks_of_table) or RANKS
    given = any(word.startswith(("model=", "model.name=")) for word in overrides)
    shapes = (settings.shape or "").split(",") if settings.shape else list(SHAPES)
    config = planned_config(overrides, settings)
    lora = config.lora
    if lora.trains_all:
        raise RequestError("--table counts adapters, and lora=none has none; give lora=all_linear")
    names = [None] if given else shapes
    planned = [_planned(name, config.model) for name in names]
    models = [
        _counted_in(each, name, config.model, lora.target_modules)
        for each, name in zip(planned, names, strict=True)
    ]
    gpt3 = _counted(GPT3, ModelConfig(), ["q_proj", "v_proj"])
    costs = _costs(zip(planned, models, strict=True), lora)
    if as_json:
        tree = _tree(models, gpt3, ranks) | {"methods": [each.tree() for each in costs]}
        print(json.dumps(tree, indent=2))
        return 0
    print("\n".join(worked_example()))
    print(
        f"\nAdapters on {', '.join(lora.target_modules)}: r (d_in + d_out) for every adapted matrix"
    )
    for heading, rows in table_rows(models, ranks):
        print(f"\n{heading}\n{_aligned(rows)}")
    if any(model.adapter_params(rank) is None for model in models for rank in ranks):
        print(
            "—: above the smallest dimension of an adapted matrix, where an adapter is larger than it"
        )
    print(
        "\nGPT-3 175B, W_q and W_v, as in LoRA's table 6 (arXiv 2106.09685), fused in c_attn here"
    )
    for _, rows in list(table_rows([gpt3], GPT3_RANKS))[:2]:
        print(_aligned(rows))
    print(
        "\nA toy: 2 r sqrt(N), the whole model as one square matrix. It is shown in explanations of LoRA; "
        "no model is\none matrix, and the counts above are what an adapter has."
    )
    print(_aligned(toy_rows()))
    print(
        f"\nGB (10^9 bytes) that training takes before activations: rank {lora.rank} on "
        f"{', '.join(lora.target_modules)}, QLoRA with nf4_dq"
    )
    print(_aligned(method_rows(costs)))
    for each in costs:
        if each.model == TEN_BILLION:
            print("\n".join(f"  {line}" for line in formulas(each)))
    print("\n".join(text_of_ten_billion()))
    return 0


def _costs(
    models: "Iterable[tuple[PlannedModel, CountedModel]]", lora: LoraConfig
) -> "list[MethodBytes]":
    """Return what the methods take of these models, and of one of 10B parameters."""
    from harness.plan.method_table import TEN_BILLION, method_bytes

    asked = list(models)
    if all(counted.name != TEN_BILLION for _, counted in asked):
        ten = _planned(TEN_BILLION, ModelConfig())
        with suppress(RequestError):  # layers that only the asked models have
            counted = _counted_in(ten, TEN_BILLION, ModelConfig(), lora.target_modules)
            asked.append((ten, counted))
    found = (method_bytes(*each, lora.rank) for each in asked)
    return [each for each in found if each is not None]


def _planned(shape: str | None, model: ModelConfig) -> "PlannedModel":
    from harness.base.source import find_model
    from harness.plan.model import PlannedModel

    if shape is None:
        return PlannedModel.from_source(find_model(model), model)
    return PlannedModel.from_shape(shape, model)


def _counted(shape: str | None, model: ModelConfig, targets: Sequence[str]) -> CountedModel:
    return _counted_in(_planned(shape, model), shape, model, targets)


def _counted_in(
    planned: "PlannedModel", shape: str | None, model: ModelConfig, targets: Sequence[str]
) -> CountedModel:
    from harness.base.storage import storage_of
    from harness.plan.base_bytes import base_bytes

    dense = storage_of(QuantConfig(format=QuantFormat.none))
    params = base_bytes(planned.outline, dense).logical_params
    config = planned.model.config
    try:
        return counted_model(shape or model.name, config, params, planned.linears, targets)
    except RequestError as error:
        raise RequestError(f"{shape or model.name}: {error}") from error


def _tree(
    models: Sequence[CountedModel], gpt3: CountedModel, ranks: Sequence[int]
) -> dict[str, object]:
    from harness.plan.explain import one_square_matrix_params

    def counts(model: CountedModel, ranks: Sequence[int]) -> list[dict[str, object]]:
        found = []
        for rank in ranks:
            params = model.adapter_params(rank)
            share = None if params is None else params / model.params
            size = None if params is None else 4 * params
            found.append({"rank": rank, "params": params, "share": share, "bytes": size})
        return found

    return {
        "models": [
            {"model": model.name, "params": model.params, "adapters": counts(model, ranks)}
            for model in models
        ],
        "gpt3_q_v": counts(gpt3, GPT3_RANKS),
        "toy_one_square_matrix": [
            {"model": name, "rank": rank, "params": one_square_matrix_params(size, rank)}
            for name, size in TOY_SIZES.items()
            for rank in TOY_RANKS
        ],
    }


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
