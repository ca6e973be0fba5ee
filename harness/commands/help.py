"""`--help` of run, plan and sweep: groups, options and keys with what they mean. Imports no torch.

A key's text is its docstring in `harness.config.schema`, so that it stands once.
"""

import ast
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import harness.config.schema
from harness.config.compose import FREE_GROUP, compose_run, group_options
from harness.config.schema import RunConfig
from harness.plan.settings import PREFIX, PlanSettings, shape_names
from harness.question.load import known_sweeps

_HEADER = """\
usage: harness run [override…] [--json]

Train one LoRA adapter on a frozen base, measure and evaluate it, and leave a record under
out/runs/<run_id>/. A run that has ended well before is shown, not trained again; one that was
interrupted goes on from its last checkpoint. With --json the record is printed on standard output,
everything else on standard error.
"""

_EXAMPLES = """\
Examples:
  harness run
  harness run quant=int4 lora.rank=4 seed=1
  harness run model=path/to/llama data=alpaca data.path=rows.jsonl optim.epochs=1
  harness run --cfg job quant=none           the composed configuration as YAML, nothing is trained
  harness run --config-dir DIR quant=mine    groups and options of your own: DIR/GROUP/OPTION.yaml
"""

_WIDTH = 100


def run_help(overrides: Sequence[str]) -> str:
    """Return the help text, with the values that `overrides` give."""
    config = compose_run(overrides)
    return "\n".join(
        [_HEADER, "Groups, group=option:", *_group_lines(), "", *_key_lines(config), "", _EXAMPLES]
    )


def _group_lines() -> Iterator[str]:
    for group, options in group_options().items():
        text = ", ".join(options)
        if group == FREE_GROUP:
            text += ", any directory with a causal LM, or a Hugging Face id"
        yield from textwrap.wrap(
            text, _WIDTH, initial_indent=f"  {group:<9}", subsequent_indent=" " * 11
        )


def _key_lines(config: RunConfig) -> Iterator[str]:
    """Yield every key with its value, its choices and its docstring."""
    yield "Keys, key=value, here with their present values:"
    documentation = _field_docstrings()
    for section in fields(config):
        value = getattr(config, section.name)
        if is_dataclass(value):
            yield ""
            for field in fields(value):
                text = documentation.get((type(value).__name__, field.name), "")
                yield from _one_key(
                    f"{section.name}.{field.name}", getattr(value, field.name), text
                )
        else:
            yield ""
            yield from _one_key(section.name, value, documentation.get(("RunConfig", section.name)))


def _one_key(key: str, value: Any, text: str | None) -> Iterator[str]:
    if isinstance(value, Enum):
        choices = "one of " + ", ".join(member.name for member in type(value))
        text = f"{text} {choices[0].upper()}{choices[1:]}." if text else choices
    yield f"  {key}={_spelt(value)}"
    if text:
        yield from textwrap.wrap(
            text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
        )


def _spelt(value: Any) -> str:
    """Return a value as an override would give it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Enum():
            return value.name
        case list():
            return f"[{','.join(map(str, value))}]"
        case _:
            return str(value)


def _field_docstrings() -> dict[tuple[str, str], str]:
    """Return the string under each field of the configuration's classes, by (class, field)."""
    source = ast.parse(Path(harness.config.schema.__file__).read_text(encoding="utf-8"))
    found: dict[tuple[str, str], str] = {}
    for node in source.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, after in zip(node.body, node.body[1:], strict=False):
            match field, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[node.name, name] = " ".join(text.split())
    return found


# harness plan --help -------------------------------------------------------------------------------


_TEXT = """\
usage: harness plan [override…]              memory of one run, by part
       harness plan --table [override…]      adapter sizes over ranks and models
       harness plan NAME|FILE [override…]    every configuration of a sweep: memory, what fits, time

  --budget 24GiB   say what fits so much memory, and how many runs side by side
  --explain        the arithmetic of one run, line by line, with each formula's source
  --probe          measure too: 12 steps of each configuration, in a process of its own (kept under paths.out)
  --json           one JSON document: metrics and parts by the names of `harness run --json`
  --config-dir DIR groups and options of your own: DIR/GROUP/OPTION.yaml

Overrides are those of `harness run` and `harness sweep`, and besides:

{keys}

shapes: {shapes}

Neither weights nor a GPU are touched, except by --probe. Static parts (base, constants, adapter, gradients,
optimizer) are exact; activations and the peak come from the engine's own passes on tensors without memory.
"""


_KEYS = {
    "shape": "a published model's dimensions in the model's place (conf/shape/)",
    "ranks": "ranks of --table, such as 1,2,8; there plan.shape takes several shapes too",
    "device": "cpu or cuda; default: what this machine has",
    "cohort": "runs that share a pass; default 1",
    "length": "positions per row; default: what the data's rows have, data.max_length for a shape",
    "loss_tokens": "positions of a micro-batch that carry loss; default: the data's, all for a shape",
    "tokens_per_second": "positions per second of one run, for the time; default: as measured by a probe",
}


def plan_help() -> str:
    """Return the help of `harness plan`."""
    names = [field.name for field in fields(PlanSettings)]
    assert set(names) == set(_KEYS), names
    width = max(len(PREFIX + name) for name in names)
    keys = "\n".join(f"  {PREFIX + name:<{width}}  {_KEYS[name]}" for name in names)
    return _TEXT.format(keys=keys, shapes=", ".join(shape_names()))


# harness sweep --help ------------------------------------------------------------------------------


_HELP = """\
usage: harness sweep NAME|FILE [override…] [--dry-run] [--json]

Train every run that answers a question, many side by side on one frozen base per device, then confirm the
best cells on fresh seeds. The same command resumes a sweep that was stopped or killed, and so does its name,
also where it was begun from a file. Everything is kept under out/sweeps/NAME/ (the study, state.json) and
out/runs/ (the records).

  key=value                       for every run; on an axis: fix it
  key=choice(a,b)                 an axis, given or replaced; range(2,10,2), interval(1e-4,1e-2),
                                  tag(log,interval(1e-4,1e-2)), int(interval(1,64)) too
  scale=embedded                  of a file with scales, such as those of papers/: embedded, smollm2, paper
  search.method=tpe               grid, random, tpe, gp, nsga2, cmaes
  search.transfer=lr              of a grid over lora.rank and optim.lr: at higher ranks only the rates near
                                  the one that the lower ranks predict
  search.trials=60                how many cells a search tries
  search.pruner=asha              none, asha, hyperband, median
  search.seeds=[0,1]              seeds of every cell
  search.in_flight=6              trials at once at most; results so far steer the next ones
  search.probe=false              do not run each distinct configuration alone for a few steps, for its cost
  compare={lora.rank:steps}       what the confirmation compares: steps, each, or a level as the reference;
                                  {lora.rank:2,per:quant,expected:equivalent}, or a list; see sweeps/
  margin=0.01                     the difference of the objective that counts as none
  confirm.top=3 confirm.seeds=[10,11,12] confirm.split=test, or confirm=null
  confirm.seeds=auto              as many as the margin needs, confirm.at_most=12
  resources.devices=cpu:2         auto (every visible GPU, or the CPU's cores), cpu (one worker), [0,2]
  resources.cohort=4              runs side by side at most; without it, what is measured to be fastest
  study.storage=postgresql://…    another place for the study than out/sweeps/NAME/study.db; there other
                                  machines can join with `harness worker NAME study.storage=…`
  study.heartbeat_seconds=20      a member that dies is noticed within two of these
  study.artifacts=s3://bucket     where members leave their runs that do not share paths.out
  launcher=slurm launcher.workers=16 launcher.gpus=1 launcher.partition=… launcher.time_minutes=…
                                  submit the members to Slurm and return at once; see docs/slurm.md
  name=OTHER                      another name, so another study

  --dry-run                       print what would run, after checking it against the model; trains nothing
  --json                          print state.json at the end
  --config-dir DIR                groups and options of your own, axes too: DIR/GROUP/OPTION.yaml

Ready questions:
"""


def sweep_help() -> str:
    """Return the help text with the questions in sweeps/."""
    lines, known = [], known_sweeps()
    wide = max(map(len, known)) + 1
    for name, question in known.items():
        lines += textwrap.wrap(
            question, 106, initial_indent=f"  {name:<{wide}}", subsequent_indent=" " * (wide + 2)
        )
    return _HELP + "\n".join(lines) + "\n"
