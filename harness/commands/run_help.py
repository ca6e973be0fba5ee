"""`harness run --help`: groups, options and keys with what they mean. Imports no torch.

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
