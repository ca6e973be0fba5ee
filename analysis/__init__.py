"""Records into tables and figures. Imports only `harness.records`, never torch or wandb."""
