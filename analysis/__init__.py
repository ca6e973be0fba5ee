"""Records into tables and figures. Imports harness.record and harness.metrics, never torch or wandb."""
