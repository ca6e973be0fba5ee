"""Whatever values fields are given as overrides, the configuration has them, and its tree gives them back."""

import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.compose import (
    compose_run,
    composed_by_hydra,
    config_of_tree,
    config_tree,
    prepare_overrides,
)
from harness.config.schema import RunConfig
from harness.question.values import spelled

ONE_OF = ({"lora.alpha", "lora.alpha_over_rank"}, {"optim.steps", "optim.epochs"})
"""Pairs of which one is given; the other one is taken away by it."""
FOLLOWS = {
    "quant.compute_dtype",
    "resources.device",
    "resources.devices",
    "data.task",
    "data.path",
    "data.hub",
}
texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8).filter(
    lambda text: "${" not in text and text != "???"  # what OmegaConf itself replaces, and asks for
) | st.sampled_from(["8", "1e3", "true", "null", "[a,b]", "{a: 1}", "a,b", "a=b", "'", '"', "\\"])


def keys(section: type, prefix: str = "") -> dict[str, Any]:
    """Return every field below a section with its type."""
    hints = get_type_hints(section)
    found: dict[str, Any] = {}
    for each in fields(section):
        kind = hints[each.name]
        if is_dataclass(kind):
            found |= keys(kind, f"{prefix}{each.name}.")  # type: ignore[arg-type]
        else:
            found[prefix + each.name] = kind
    return found


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of the values that a field of this type can hold."""
    if get_origin(kind) in (Union, types.UnionType):
        return st.one_of([values(each) for each in get_args(kind) if each is not type(None)])
    if get_origin(kind) is list:
        return st.lists(texts, max_size=3)
    if get_origin(kind) is dict:
        names = st.from_regex(r"[a-z]{1,4}(_[a-z]{1,4}){0,2}", fullmatch=True)
        return st.dictionaries(names, values(get_args(kind)[1]), min_size=1, max_size=3)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    return {
        bool: st.booleans(),
        int: st.integers(-(10**9), 10**9),
        float: st.floats(allow_nan=False, allow_infinity=False, width=32),
        str: texts,
    }[kind]


KEYS = keys(RunConfig)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Up to eight fields with values."""
    chosen = draw(
        st.lists(
            st.sampled_from(sorted(KEYS.keys() - FOLLOWS)), min_size=1, max_size=8, unique=True
        )
    )
    for pair in ONE_OF:
        if pair <= set(chosen):
            chosen.remove(min(pair))
    return {key: draw(values(KEYS[key])) for key in chosen}


def at(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def written(value: Any) -> str:
    """Return how a user writes a value; a text in quotes where it would read as something else."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        pairs = (f"{written(key)}: {written(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, str):
        return spelled(QuotedString(text=value, quote=Quote.single))
    return spelled(value.value if isinstance(value, Enum) else value)


@settings(max_examples=12)
@given(given_values=changes())
def test_values_given_as_overrides_are_those_of_the_configuration(
    given_values: dict[str, Any],
) -> None:
    overrides = [f"{key}={written(value)}" for key, value in given_values.items()]
    config = compose_run(overrides)
    assert {key: at(config, key) for key in given_values} == given_values
    assert composed_by_hydra(prepare_overrides(overrides)) == config
    tree = config_tree(config)
    assert config_of_tree(tree) == config
    assert config_of_tree(yaml.safe_load(yaml.safe_dump(tree))) == config
