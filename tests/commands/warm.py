"""What the fork server loads before it forks: what commands and workers import, also late in a run."""

import importlib

from harness.base.quick_imports import quiet_libraries
from harness.config.compose import compose_run

quiet_libraries()  # before transformers and peft look for bitsandbytes
LOADED = (
    *("accelerate", "peft", "transformers.models.llama.modeling_llama"),
    *("harness.training.launch", "harness.training.session", "harness.plan.subject"),
    *("harness.commands.run", "harness.commands.sweep", "harness.commands.worker"),
    *("harness.commands.status", "harness.sweeping.worker"),
    *("harness.evals.modules.exact_match", "rouge_score.rouge_scorer"),
    *("alembic.config", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite"),
    *("wandb", "wandb.sdk.launch.inputs.internal", "harness.tracking.wandb_tracker"),
    "psycopg",  # last, since it may be missing
)
for _name in LOADED:
    importlib.import_module(_name)
compose_run([])  # Hydra looks for its plugins once
