"""The fixed words of the command line: commands and their options. Imports nothing."""

COMMANDS = {
    "run": "train, measure and evaluate one LoRA adapter on one base",
    "sweep": "start or resume a sweep: many runs that answer one question",
    "worker": "join a sweep from another process or machine",
    "data": "rows as a model is trained on them, the tokens that carry loss marked; what was cut",
    "plan": "what a run or a sweep would need: memory by part, what fits, how long",
    "status": "progress and leaders of a sweep, while it runs and afterwards",
    "report": "tables, figures and one html page from the records of sweeps",
    "ask": "answers of a run, a sweep's best or the base, streamed and side by side",
    "evaluate": "adapters that runs have left, on tasks of lm-evaluation-harness, many in one pass",
    "export": "an adapter as PEFT folder, merged, re-stored or as GGUF, each with its loss",
    "push": "an export, or rows, to the Hugging Face hub, on request only",
    "wandb": "where the offline W&B files of a sweep lie, and how to see them online",
    "doctor": "devices, versions and measured rates; who computes which format, and what falls back",
}

OWN_GROUPS = {"--config-dir": 1, "-cd": 1}  # option of a command: how many values follow it
SWEEP_FLAGS = {"--dry-run": 0, "--json": 0, "--help": 0, "-h": 0, **OWN_GROUPS}
WORKER_FLAGS = {"--help": 0, "-h": 0, **OWN_GROUPS}
REPORT_FLAGS = {
    "--source": 1,
    "--watch": 0,
    "--serve": 0,
    "--port": 1,
    "--json": 0,
    "--help": 0,
    "-h": 0,
}
ASK_FLAGS = {
    "--compare": 1,
    "--file": 1,
    "--temperature": 1,
    "--top-p": 1,
    "--seed": 1,
    "--max-tokens": 1,
    "--json": 0,
    "--help": 0,
    "-h": 0,
    **OWN_GROUPS,
}
EVALUATE_FLAGS = {"--json": 0, "--help": 0, "-h": 0, **OWN_GROUPS}
EXPORT_FLAGS = {
    "--to": 1,
    "--out": 1,
    "--into": 1,
    "--types": 1,
    "--license": 1,
    "--json": 0,
    "--help": 0,
    "-h": 0,
}
PUSH_FLAGS = {"--data": 0, "--public": 0, "--json": 0, "--help": 0, "-h": 0}
WANDB_FLAGS = {"--paths": 0, "--json": 0, "--help": 0, "-h": 0}
DOCTOR_FLAGS = {"--json": 0, "--help": 0, "-h": 0, **OWN_GROUPS}
PLAN_FLAGS = {
    "--budget": 1,
    "--explain": 0,
    "--probe": 0,
    "--table": 0,
    "--json": 0,
    "--help": 0,
    "-h": 0,
    **OWN_GROUPS,
}
DATA_FLAGS = {
    "--rows": 1,
    "--split": 1,
    "--out": 1,
    "--license": 1,
    "--json": 0,
    "--help": 0,
    "-h": 0,
    **OWN_GROUPS,
}
STATUS_FLAGS = {"--json": 0, "--help": 0, "-h": 0}
RUN_FLAGS = {
    "--json": 0,
    "--help": 0,
    "-h": 0,
    "--hydra-help": 0,
    "--cfg": 1,
    "-c": 1,
    "--package": 1,
    "-p": 1,
    "--resolve": 0,
    "--info": 1,
    "-i": 1,
    "--multirun": 0,
    "-m": 0,
    "--dry-run": 0,
    **OWN_GROUPS,
}
FLAGS_OF = {
    "run": RUN_FLAGS,
    "sweep": SWEEP_FLAGS,
    "worker": WORKER_FLAGS,
    "data": DATA_FLAGS,
    "plan": PLAN_FLAGS,
    "status": STATUS_FLAGS,
    "report": REPORT_FLAGS,
    "ask": ASK_FLAGS,
    "evaluate": EVALUATE_FLAGS,
    "export": EXPORT_FLAGS,
    "push": PUSH_FLAGS,
    "wandb": WANDB_FLAGS,
    "doctor": DOCTOR_FLAGS,
}
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
