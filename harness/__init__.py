"""QLoRA Harness: many LoRA adapters trained, measured and compared on one frozen 4-bit base.

This package's top level imports nothing, so that `harness.config.schema`, `harness.records.record` and
`harness.records.metrics` stay usable without torch, transformers or wandb.
"""

__version__ = "0.1.0"
