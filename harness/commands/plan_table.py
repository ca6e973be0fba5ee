"""`harness plan --table`: adapter sizes over ranks and models, by real counts and by the popular toy."""

import json
from collections.abc import Sequence

from harness.base.quick_imports import quick_imports
from harness.config.schema import ModelConfig, QuantConfig, QuantFormat
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


def plan_table(words: Sequence[str], *, as_json: bool) -> int:
    """Print the tables of the shapes that `plan.shape` names, or of `model=`; returns the exit code."""
    settings, overrides = split_settings(words)
    with quick_imports():
        return _plan_table(overrides, settings, as_json=as_json)


def _plan_table(overrides: Sequence[str], settings: PlanSettings, *, as_json: bool) -> int:
    from harness.commands.plan import planned_config

    ranks = tuple(settings.ranks_of_table) or RANKS
    given = any(word.startswith(("model=", "model.name=")) for word in overrides)
    shapes = (settings.shape or "").split(",") if settings.shape else list(SHAPES)
    config = planned_config(overrides, settings)
    lora = config.lora
    if lora.trains_all:
        raise RequestError("--table counts adapters, and lora=none has none; give lora=all_linear")
    names = [None] if given else shapes
    models = [_counted(name, config.model, lora.target_modules) for name in names]
    gpt3 = _counted(GPT3, ModelConfig(), ["q_proj", "v_proj"])
    if as_json:
        print(json.dumps(_tree(models, gpt3, ranks), indent=2))
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
    return 0


def _counted(shape: str | None, model: ModelConfig, targets: Sequence[str]) -> CountedModel:
    from harness.base.source import find_model
    from harness.base.storage import storage_of
    from harness.plan.base_bytes import base_bytes
    from harness.plan.model import PlannedModel

    planned = (
        PlannedModel.from_source(find_model(model), model)
        if shape is None
        else PlannedModel.from_shape(shape, model)
    )
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
