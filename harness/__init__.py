"""QLoRA Harness: many LoRA adapters trained, measured and compared on one frozen 4-bit base.

    record = harness.run(["quant=int4", "lora.rank=4"])
    result = harness.sweep("rank")
    frame = harness.load_runs("out")

This package's top level imports nothing, so that `harness.config.schema`, `harness.records.record` and
`harness.records.metrics` stay usable without torch, transformers or wandb. Its functions are in
`harness.api`, which is imported when one of them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import (
        Estimate,
        Question,
        Record,
        RequestError,
        RunConfig,
        RunFailed,
        RunStatus,
        SweepResult,
        compose,
        load_runs,
        run,
        sweep,
    )

__version__ = "0.1.0"

__all__ = [
    "Estimate",
    "Question",
    "Record",
    "RequestError",
    "RunConfig",
    "RunFailed",
    "RunStatus",
    "SweepResult",
    "compose",
    "load_runs",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module("harness.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
