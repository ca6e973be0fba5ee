"""Every backend, storage and composition against the reference; `python -m tests.engine.test_backends`
prints it.

The body of the captured backend runs uncaptured here: that a graph repeats it is for a GPU to show.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from harness.config.resources import BackendName
from harness.config.schema import (
    LoraConfig,
    LoraMethod,
    OptimConfig,
    OptimizerName,
    QuantConfig,
    QuantFormat,
    RunConfig,
)
from harness.config.storage import ROUNDING, label_of
from harness.engine.cuda.backend import (
    CudaBackend,
    why_not_captured,
    why_not_this_model,
)
from harness.engine.micro_step import Work
from harness.engine.shared_base import SharedBase
from tests.engine.products import closeness
from tests.engine.test_cpu import base_of, trained, work_of

STORAGES = [
    QuantConfig(format=each, double_quant=double)
    for each in ROUNDING
    for double in (False, True)
    if not double or each not in (QuantFormat.none, QuantFormat.int8)
]
ALL, QV, MLP = ["all_linear"], ["q_proj", "v_proj"], ["mlp"]
COMPOSITIONS: dict[str, tuple[list[LoraConfig], dict[str, Any]]] = {
    "alone": ([LoraConfig(rank=8, alpha=16.0)], {}),
    "stacked": ([LoraConfig(rank=4, alpha=8.0) for _ in range(3)], {}),
    "unlike": (
        [
            LoraConfig(rank=2, alpha=3.0, target_modules=ALL),
            LoraConfig(rank=20, alpha=20.0, target_modules=QV, rslora=True),
            LoraConfig(rank=4, alpha=4.0, target_modules=MLP),
        ],
        {},
    ),
    "packed rows": (
        [LoraConfig(rank=4, alpha=8.0), LoraConfig(rank=8, alpha=8.0)],
        {"packed": True},
    ),
    "dropout": (
        [LoraConfig(rank=4, alpha=8.0, dropout=0.2), LoraConfig(rank=8, alpha=8.0)],
        {},
    ),
    "patterns": (
        [
            LoraConfig(rank=4, alpha_over_rank=2.0, rank_pattern={"q_proj": 20, "1.mlp.*": 2}),
            LoraConfig(rank=8, alpha=8.0),
        ],
        {},
    ),
    "dora": (
        [
            LoraConfig(rank=4, alpha=8.0, method=LoraMethod.dora),
            LoraConfig(rank=4, alpha=4.0, method=LoraMethod.dora),
            LoraConfig(rank=2, alpha=3.0, method=LoraMethod.dora, dropout=0.2, target_modules=QV),
            LoraConfig(rank=4, alpha=8.0),
        ],
        {"recompute": True},
    ),
    "qalora": (
        [
            LoraConfig(rank=4, alpha=1.0, method=LoraMethod.qalora, qalora_group_size=4),
            LoraConfig(rank=8, alpha=8.0, alpha_pattern={"v_proj": 3.0}),
        ],
        {},
    ),
    "recomputed": ([LoraConfig(rank=4, alpha=8.0)], {"recompute": True}),
}

IN_SUITE = ("none", "int8", "nf4", "nf4_dq", "int4_asym_dq", "int3_asym")
"""Storages whose whole rows of the matrix are in the suite: every kind of decoding."""
FOR_ALL = "unlike"
"""The composition that the suite tries on every storage; `make test-slow` tries all of them."""
NOT_IN_SEATS = ("dora", "qalora")
"""What captured steps leave to the reference (`why_not_captured`)."""
FAMILIES = ["llama", "mistral_windowed", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text"]

Found = list[tuple[float, torch.Tensor]]


def by_reference(shared: SharedBase, work: Sequence[Work]) -> Found:
    return [(g.loss.item(), g.of_adapter.flat_P.clone()) for g in shared.backend.gradients(work)]


def by_kept_blocks(shared: SharedBase, work: Sequence[Work]) -> Found:
    shared.backend.keep_decoded(True)
    return by_reference(shared, work)


def in_seats(shared: SharedBase, work: Sequence[Work]) -> Found:
    backend = CudaBackend(shared)
    for item in work:
        backend.sit(item.adapter, None)
    backend.add_pass(work)
    return [backend.progress_of(item.adapter) for item in work]


WAYS: dict[str, tuple[BackendName, Callable[[SharedBase, Sequence[Work]], Found], float]] = {
    "cpu": (BackendName.cpu, by_reference, closeness()),
    "cpu, decoded": (BackendName.cpu, by_kept_blocks, closeness()),
    "cuda, uncaptured": (BackendName.reference, in_seats, 2e-6),
}


def computed(
    way: tuple[BackendName, Callable[[SharedBase, Sequence[Work]], Found], float],
    quant: QuantConfig,
    composition: str,
) -> Found:
    loras, options = COMPOSITIONS[composition]
    shared = base_of("llama", quant.format, way[0], double_quant=quant.double_quant)
    work = [
        work_of(trained(shared, lora, seed), seed, **{"packed": False, **options})
        for seed, lora in enumerate(loras)
    ]
    return way[1](shared, work)


def difference(way: str, quant: QuantConfig, composition: str) -> float:
    """Return the largest difference of a loss, and of a gradient over its norm."""
    expected = computed((BackendName.reference, by_reference, 0.0), quant, composition)
    found = computed(WAYS[way], quant, composition)
    return max(
        max(abs(one[0] - other[0]), float((one[1] - other[1]).norm() / other[1].norm()))
        for one, other in zip(found, expected, strict=True)
    )


def computes(way: str, composition: str) -> bool:
    return not (way.startswith("cuda") and composition in NOT_IN_SEATS)


@pytest.mark.parametrize(
    ("way", "composition", "quant"),
    [
        pytest.param(
            *(way, composition, quant),
            marks=[] if composition == FOR_ALL or label in IN_SUITE else pytest.mark.slow,
            id=f"{way}-{composition}-{label}",
        )
        for way in WAYS
        for composition in COMPOSITIONS
        if computes(way, composition)
        for quant in STORAGES
        for label in [label_of(quant)]
    ],
)
def test_a_backend_gives_the_references_numbers(
    way: str, composition: str, quant: QuantConfig
) -> None:
    assert difference(way, quant, composition) <= WAYS[way][2]


@pytest.mark.parametrize("packed", [False, True])
def test_seats_attend_within_the_models_window(packed: bool) -> None:
    """Rows of 24 positions, windows of 5; without the window the numbers are others."""
    found = []
    for window, way in ((5, by_reference), (5, in_seats), (64, in_seats)):
        shared = base_of("mistral_windowed", backend=BackendName.reference, sliding_window=window)
        work = [work_of(trained(shared, LoraConfig(rank=4, alpha=8.0), 0), 0, packed=packed)]
        found.append(way(shared, work)[0])
    (loss, gradient), (seated, seated_gradient), (wider, _) = found
    assert abs(loss - seated) < 2e-6
    assert (gradient - seated_gradient).norm() < 2e-6 * gradient.norm()
    assert abs(wider - loss) > 1e-4


@pytest.mark.parametrize(
    ("lora", "optim", "reason"),
    [
        ({}, {}, None),
        ({"rank_pattern": {"q_proj": 4}}, {}, None),
        ({"rank_pattern": {"q_proj": 4}, "rslora": True}, {}, "several scalings"),
        ({"alpha_pattern": {"q_proj": 4.0}}, {}, "several scalings"),
        ({"method": LoraMethod.dora}, {}, "lora.method=dora"),
        ({"method": LoraMethod.qalora}, {}, "lora.method=qalora"),
        ({"train_also": ["lm_head"]}, {}, "lora.train_also"),
        ({}, {"neftune_alpha": 5.0}, "optim.neftune_alpha"),
        ({}, {"name": OptimizerName.adamw_8bit}, "adamw_8bit"),
    ],
)
def test_what_captured_steps_do_not_compute_says_why(
    lora: dict[str, Any], optim: dict[str, Any], reason: str | None
) -> None:
    config = RunConfig(
        lora=LoraConfig(alpha_over_rank=2.0, **lora), optim=OptimConfig(steps=1, **optim)
    )
    found = why_not_captured(config)
    assert (found is None) == (reason is None)
    assert reason is None or reason in (found or "")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("model", FAMILIES)
def test_seats_compute_what_the_model_does(model: str, recompute: bool) -> None:
    """Rows of several texts each; in 7 positions Gemma 3's layers see 5, all, and 5 of them."""
    loras = [
        LoraConfig(rank=4, alpha=8.0, target_modules=["all_linear"]),
        LoraConfig(rank=2, alpha=3.0, target_modules=["attention"], dropout=0.2),
    ]
    found = []
    for way in (by_reference, in_seats):
        shared = base_of(model, backend=BackendName.reference)
        work = [
            work_of(trained(shared, lora, seed), seed, packed=True, recompute=recompute)
            for seed, lora in enumerate(loras)
        ]
        found.append(way(shared, work))
    for (loss, gradient), (seated, seated_gradient) in zip(*found, strict=True):
        assert abs(loss - seated) < 2e-6
        assert (gradient - seated_gradient).norm() < 2e-6 * gradient.norm()


@pytest.mark.parametrize(
    ("model", "fields", "word"),
    [
        ("gemma", {"hidden_act": "gelu_new"}, "gelu_new"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "capped"),
        ("phi3", {"resid_pdrop": 0.1}, "drops"),
        ("phi3", {"partial_rotary_factor": 0.5}, "rotates a part"),
    ],
)
def test_what_is_not_written_out_of_a_known_model_is_refused(
    model: str, fields: dict[str, Any], word: str
) -> None:
    reason = why_not_this_model(base_of(model, backend=BackendName.reference, **fields).base)
    assert reason is not None
    assert word in reason


def test_models_whose_pass_is_not_written_out_are_refused_by_name() -> None:
    reason = why_not_this_model(base_of("gpt_neox", backend=BackendName.reference).base)
    assert reason is not None
    assert "GPTNeoXForCausalLM" in reason


def main() -> None:
    """Print the matrix as a Markdown table."""
    print("| backend | storage | " + " | ".join(COMPOSITIONS) + " |")
    print("| --- | --- |" + " ---: |" * len(COMPOSITIONS))
    for way in WAYS:
        for quant in STORAGES:
            cells = [
                f"{difference(way, quant, each):.1e}" if computes(way, each) else "reference"
                for each in COMPOSITIONS
            ]
            print(f"| {way} | {label_of(quant)} | {' | '.join(cells)} |".replace("0.0e+00", "0"))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
