"""From Hydra overrides to a typed RunConfig, with errors that name what would have worked.

Must not import torch, transformers or wandb.
"""

import copy
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness.config.devices import compute_capability, resolved_device
from harness.config.later import with_new_names
from harness.config.overrides import read_override
from harness.config.schema import FloatType, LoraConfig, PathsConfig, RunConfig
from harness.errors import RequestError, near_names
from harness.parsing import Unreadable, home_path, read_yaml

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

EXCLUSIVE = (("lora.alpha", "lora.alpha_over_rank"), ("optim.steps", "optim.epochs"))
"""Pairs of which exactly one is given; one on the command line takes the place of the other's default."""

FREE_GROUP = "model"
"""The group whose value may be any directory or Hugging Face id."""


CONFIG_DIR_VARIABLE = "HARNESS_CONFIG_DIR"
"""A directory with groups of the user's own, for this process and those that it starts."""


def shipped_directory(name: str) -> Path:
    """Return `conf` or `sweeps`: inside the package of a wheel, beside the package in a checkout."""
    package = Path(harness.__file__).parent
    packaged = package / name
    return packaged if packaged.is_dir() else package.parent / name


def conf_directory() -> Path:
    """Return the Hydra tree that comes with the harness."""
    return shipped_directory("conf")


NOT_A_GROUP = "shape"
"""A directory beside the groups: published dimensions for `harness plan`, no part of a run."""


def group_options() -> dict[str, list[str]]:
    """Return the options of every config group, the user's own among them.

    Raises RequestError where an option of the user's own would be ignored, since there is one of that name.
    """
    found = _options_in(conf_directory())
    own = own_directory()
    if own is None:
        return found
    for group, options in _options_in(own).items():
        taken = sorted(set(options) & set(found.get(group, [])))
        if taken:
            raise RequestError(
                f"{own / group / taken[0]}.yaml would be ignored: {group}={taken[0]} comes with the "
                "harness; give the file another name"
            )
        found[group] = sorted([*found.get(group, []), *options])
    return found


def _options_in(tree: Path) -> dict[str, list[str]]:
    return {
        directory.name: sorted(path.stem for path in directory.glob("*.yaml"))
        for directory in sorted(tree.iterdir())
        if directory.is_dir() and directory.name != NOT_A_GROUP and any(directory.glob("*.yaml"))
    }


def own_directory() -> Path | None:
    """Return the directory with the user's own groups, or None.

    Raises RequestError where the one that is named does not hold any.
    """
    named = os.environ.get(CONFIG_DIR_VARIABLE)
    if not named:
        return None
    directory = home_path(named).absolute()
    if not directory.is_dir() or not _options_in(directory):
        what = "holds no group" if directory.is_dir() else "is no directory"
        raise RequestError(
            f"--config-dir {named} {what}; an option of yours is a file GROUP/OPTION.yaml in it, such as "
            f"{directory / 'quant' / 'mine.yaml'} (without --config-dir, {CONFIG_DIR_VARIABLE} names it)"
        )
    for file in sorted([*directory.glob("*.yaml"), *directory.glob("*/*.yaml")]):
        _check_own_file(file)
    return directory


def _check_own_file(file: Path) -> None:
    """Refuse a file that Hydra, which expands all that it reads, should not be given."""
    if not file.is_file():  # reading what is neither file nor directory may wait for ever
        raise RequestError(f"{file} is no file; an option of yours is a file GROUP/OPTION.yaml")
    try:
        status = file.stat()
        _read_own_file(file, status.st_size, status.st_mtime_ns)
    except (OSError, Unreadable) as error:
        raise RequestError(f"{file} cannot be read as YAML: {error}") from error


@lru_cache(maxsize=256)
def _read_own_file(file: Path, size: int, modified_ns: int) -> None:
    """Read a file as it is now; one that is sound is read once."""
    tree = read_yaml(file.read_bytes())
    if not isinstance(tree, dict | None):
        raise Unreadable(f"it must hold keys with values, got a {type(tree).__name__}")


def own_directory_words() -> list[str]:
    """Return what a command line needs to find the user's own groups."""
    own = own_directory()
    return [] if own is None else ["--config-dir", str(own)]


def known_keys() -> Iterator[str]:
    """Yield the dotted name of every field of the configuration."""
    yield from (key for key, _ in types_of_keys())


def types_of_keys(config_type: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of the configuration with the type that it is declared with."""
    for field in fields(config_type):
        name = f"{prefix}{field.name}"
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from types_of_keys(field.type, f"{name}.")
        else:
            yield name, field.type


def _schema() -> RunConfig:
    """Return the root schema for OmegaConf, which can merge a mapping into an empty one and not into none."""
    return RunConfig(lora=LoraConfig(rank_pattern={}, alpha_pattern={}))


def register_schema() -> None:
    """Tell Hydra the typed root schema and the resolvers of conf/config.yaml; may be called again."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="run_schema", node=_schema())
    OmegaConf.register_new_resolver("compute_dtype_for", compute_dtype_for, replace=True)
    OmegaConf.register_new_resolver("lora_dtype_for", lora_dtype_for, replace=True)
    OmegaConf.register_new_resolver("oc.env", environment_variable, replace=True)


ENVIRONMENT = (
    *("HOME", "USER", "LOGNAME", "HOSTNAME", "TMPDIR", "SCRATCH", "WORK", "PROJECT", "DATA"),
    *(
        "CUDA_VISIBLE_DEVICES",
        "SLURM_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_TMPDIR",
        "SLURMD_NODENAME",
    ),
    *("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME"),
    "HARNESS_OUT",
)
"""What `${oc.env:NAME}` may name: a file from elsewhere must not read the keys that others hold."""


def environment_variable(name: str, default: str | None = None) -> str | None:
    """Return a variable of the environment that a configuration may use, as OmegaConf's own resolver does."""
    if name not in ENVIRONMENT:
        raise ValueError(
            f"${{oc.env:{name}}} is not among what a configuration may use: {', '.join(ENVIRONMENT)}"
        )
    if os.environ.get(name):
        return os.environ[name]
    if default is None:
        raise KeyError(f"the environment variable {name} is not set, or empty")
    return str(default)


def compute_dtype_for(device: str) -> str:
    """Return the default compute type: float32 on a CPU, 16 bits on a GPU.

    bfloat16 where the GPU multiplies it (from compute capability 8.0 on), else float16.
    """
    resolved = resolved_device(device)
    if not resolved.startswith("cuda"):
        return FloatType.float32.value
    capability = compute_capability(resolved)
    knows_bfloat16 = capability is None or capability >= (8, 0)
    return (FloatType.bfloat16 if knows_bfloat16 else FloatType.float16).value


def lora_dtype_for(device: str, base_dtype: str) -> str:
    """Return the default type of the adapters' products: that of the base on a GPU, float32 on a CPU."""
    on_gpu = resolved_device(device).startswith("cuda")
    return base_dtype if on_gpu else FloatType.float32.value


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of one run; Hydra composes once per combination of group options.

    Raises RequestError for an override that cannot be read, an unknown key, group or option (with near
    names), a value of the wrong type, or several values where one is meant.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    prepared = prepare_overrides(overrides)
    try:
        found = _with_fields(prepared)
    except (HydraException, OmegaConfBaseException, ValueError, ArithmeticError, RecursionError):
        found = None  # refused: Hydra says why
    return found or composed_by_hydra(prepared)


def composed_by_hydra(prepared: Sequence[str]) -> RunConfig:
    """Return what Hydra alone makes of `prepare_overrides`' result, in the time of ten `compose_run`.

    Raises RequestError as that does.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return run_config(compose_tree(prepared))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_first_lines(error)) from error
    except RequestError:  # which is a ValueError, and has said it all
        raise
    except RecursionError:
        raise RequestError("a value refers to itself by ${…}; give it as it is") from None
    except (ValueError, ArithmeticError) as error:  # of a conversion to the key's type
        raise RequestError(f"a value cannot be taken: {error}") from error


def _with_fields(prepared: Sequence[str]) -> RunConfig | None:
    """Return the tree of all options of groups, with Hydra's own call applied for each plain `key=value`.

    None where an override is neither.
    """
    from omegaconf import OmegaConf

    options = group_options()
    groups: list[str] = []
    fields: list[Override] = []
    for text in prepared:
        override = parse_override(text)[1]
        if override.package is not None:
            return None
        if override.key_or_group in options and (_is_plain(override) or override.is_add()):
            groups.append(text)
        elif override.key_or_group in _all_keys() and _is_plain(override):
            fields.append(override)
        else:
            return None
    tree = copy.deepcopy(_tree_of_groups(tuple(groups), _files_of_groups()))
    for field in fields:
        OmegaConf.update(tree, field.key_or_group, field.value(), merge=True)
    return run_config(tree)


def _is_plain(override: "Override") -> bool:
    """Whether an override is `key=value`, without + or ~."""
    from hydra.core.override_parser.types import OverrideType

    return override.type is OverrideType.CHANGE


@lru_cache(maxsize=256)
def _tree_of_groups(
    groups: tuple[str, ...], files: tuple[tuple[str, int, int], ...]
) -> "DictConfig":
    """Return the tree of some options, as these files have it; it is never to be changed."""
    del files
    return compose_tree(groups)


def _files_of_groups() -> tuple[tuple[str, int, int], ...]:
    """Return every file that Hydra may read, its size, and when it was changed."""
    found = []
    for tree in (conf_directory(), own_directory()):
        for directory in () if tree is None else (tree, *filter(Path.is_dir, tree.iterdir())):
            with os.scandir(directory) as files:
                for file in files:
                    status = file.stat()
                    found.append((file.path, status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))


def compose_tree(prepared: Sequence[str]) -> "DictConfig":
    """Return the typed tree that Hydra composes from `prepare_overrides`' result, not yet resolved.

    Raises Hydra's and OmegaConf's own exceptions, and RequestError where a file of the user's own is no YAML.
    """
    import hydra
    import yaml

    register_schema()
    overrides = list(prepared)
    own = own_directory()
    if own is not None:
        overrides.append(f"hydra.searchpath=[{_quoted(_literal(f'file://{own}'))}]")
    try:
        with hydra.initialize_config_dir(str(conf_directory()), version_base="1.3"):
            return hydra.compose("config", overrides=overrides)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"a file in {own} cannot be read as YAML: {reason}") from error


def run_config(tree: "DictConfig") -> RunConfig:
    """Return the configuration that a composed tree describes. Raises OmegaConf's own exceptions."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    try:
        config: Any = OmegaConf.to_object(tree)
    except MissingMandatoryValue:
        missing = sorted(OmegaConf.missing_keys(tree))
        raise RequestError(f"{', '.join(missing)} must be given") from None
    assert isinstance(config, RunConfig)
    _expand_home(config.paths)
    config.lora.rank_pattern = config.lora.rank_pattern or None
    config.lora.alpha_pattern = config.lora.alpha_pattern or None
    return config


def _expand_home(paths: PathsConfig) -> None:
    """Write `~` out: a shell expands it only at the start of a word, not in `paths.out=~/runs`."""
    for key, name in (("out", paths.out), ("cache", paths.cache)):
        if name is not None and re.match(r"[A-Za-z][\w+.-]*://", name):
            raise RequestError(
                f"paths.{key}={name} is an address; give a directory of this machine"
            )
    paths.out = str(home_path(paths.out))
    if paths.cache is not None:
        paths.cache = str(home_path(paths.cache))


def config_tree(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain mappings, lists and scalars, enums by name."""
    return _plain(config)


def _plain(value: Any) -> Any:
    """Return what `OmegaConf.to_container` would, without building its containers: sweeps ask thousands."""
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def config_of_tree(tree: dict[str, Any]) -> RunConfig:
    """Return the configuration that `config_tree` wrote. Raises RequestError for what is none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        literal = _all_literal(with_new_names(tree))
        merged: Any = OmegaConf.merge(OmegaConf.structured(_schema()), literal)
        return run_config(merged)
    except OmegaConfBaseException as error:
        raise RequestError(_first_lines(error)) from error


def _all_literal(value: Any) -> Any:
    """Return a tree in whose texts OmegaConf finds no reference: they are values, and no formulas."""
    if isinstance(value, str):
        return _literal(value)
    if isinstance(value, dict):
        return {key: _all_literal(each) for key, each in value.items()}
    return [_all_literal(each) for each in value] if isinstance(value, list) else value


def prepare_overrides(overrides: Sequence[str]) -> list[str]:
    """Check the keys and options of `overrides` and write our two short forms out in full."""
    options = group_options()
    prepared: list[str] = []
    given: set[str] = set()
    for given_text in overrides:
        text, override = parse_override(text_as_it_is(given_text))
        key = override.key_or_group
        given.add(key)
        if key == "hydra.searchpath":
            raise RequestError(f"{text}: groups of your own are found by --config-dir DIRECTORY")
        if key.split(".")[0].split("/")[0] == "hydra":
            prepared.append(text)
            continue
        if override.is_sweep_override():
            raise RequestError(
                f"{text} gives several values; a run takes one, a sweep takes several"
            )
        _check_key(key, options)
        if override.is_delete() and key in options:
            raise RequestError(
                f"{text} would leave {key} to the schema's defaults, which are no named choice; give one of "
                f"{', '.join(options[key])}"
            )
        value = override.value()
        if key in _LIST_KEYS and isinstance(value, str):
            raise RequestError(f"{text} must be a list; write {key}=[{value}]")
        if key in _MAPPING_KEYS and value is not None and not override.is_delete():
            if not isinstance(value, dict):
                raise RequestError(f"{text} must be a mapping; write {key}={{q_proj: 8}}")
            # To Hydra entries of a mapping are keys that it does not know.
            prepared.append(text if text.startswith("+") else f"+{text}")
        elif key in options and not override.is_delete():
            prepared += _group_override(text, key, value, options[key])
        else:
            prepared.append(text)
    return prepared + _dropped_defaults(given)


@lru_cache(maxsize=4096)  # a sweep parses the same few hundred again and again
def parse_override(text: str) -> tuple[str, "Override"]:
    """Return an override and its text, with a name or path that the grammar cannot take quoted.

    The grammar wants quotes inside quotes around `model='/models/a (b)'`, which a shell makes hard to type.
    Raises RequestError, from Hydra's own exception, for what is no override.
    """
    from hydra.errors import HydraException

    try:
        return text, read_override(text)
    except HydraException as error:
        key, equals, value = text.partition("=")
        if equals and key.lstrip("+") in text_keys():
            quoted = f"{key}={_quoted(value)}"
            try:
                return quoted, read_override(quoted)
            except HydraException as refused:
                raise RequestError(f"{text!r} cannot be read: {refused}") from refused
        raise RequestError(
            f"{text!r} is no override; write key=value, group=option, +key=value or ~key"
            f"{_said_by_us(error)}"
        ) from error


def _said_by_us(error: Exception) -> str:
    """Return a reason that is ours; those of Hydra's parser are about its grammar."""
    from hydra.errors import OverrideParseException

    return "" if isinstance(error, OverrideParseException) else f" ({error})"


_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_REFERENCE = re.compile(r"(\\*)\$\{")
_REFERENCE_BUT_OURS = re.compile(r"(\\*)\$\{(?!oc\.)")


def text_as_it_is(text: str) -> str:
    """Return an override whose value is a free text or a path, quoted so that the grammar reads none of it.

    A comma would be a list of values, a bracket a list, `1e5` a number, `${v}` a reference (to a variable of
    the environment it stays one). What is quoted already stays, and so does `null`.
    """
    key, equals, value = text.partition("=")
    name = key.lstrip("+")
    if not equals or name not in text_keys() or not value.strip():
        return text
    if value == "null" or _QUOTED.fullmatch(value):
        return text
    if name == FREE_GROUP and _OPTION.fullmatch(value):
        return text
    return f"{key}={_quoted(_literal(value, _REFERENCE_BUT_OURS))}"


_OPTION = re.compile(r"[A-Za-z_][\w.-]*")
"""What may name an option of a group; numbers, which the grammar would read as such, are none."""


def _literal(value: str, reference: re.Pattern[str] = _REFERENCE) -> str:
    """Return `value` with its `${` escaped for OmegaConf, and the backslashes before them."""
    return reference.sub(lambda found: found[1] * 2 + "\\${", value)


_CHOICES = ("data.task", "resources.device")
"""Keys of text whose value is one of a few words."""


@cache
def text_keys() -> frozenset[str]:
    """Return the keys whose value is a path, a name or a free text, never a list or a choice."""
    texts = (key for key, kind in types_of_keys() if kind in (str, str | None))
    return frozenset({FREE_GROUP, *texts}) - set(_CHOICES)


_LIST_KEYS = ("lora.target_modules", "lora.train_also", "tracker.tags")


_MAPPING_KEYS = ("lora.rank_pattern", "lora.alpha_pattern")


def _quoted(value: str) -> str:
    """Return `value` as a string of Hydra's grammar, where only a backslash before a quote escapes."""
    return "'" + re.sub(r"(\\*)('|$)", _escaped, value) + "'"


def _escaped(match: re.Match[str]) -> str:
    return match[1] * 2 + ("\\'" if match[2] else "")


def _check_key(key: str, options: dict[str, list[str]]) -> None:
    known = _all_keys()
    if key not in known and key not in _sections() and key not in options:
        raise RequestError(
            f"unknown key {key!r}{near_names(key, known | set(options))}; "
            "`harness run --help` lists all"
        )


@cache
def _all_keys() -> frozenset[str]:
    return frozenset(known_keys())


@cache
def _sections() -> frozenset[str]:
    return frozenset(name.rsplit(".", 1)[0] for name in _all_keys() if "." in name)


@cache
def _shipped_groups() -> frozenset[str]:
    """Return the groups of which a run has an option by default; Hydra adds others with a `+`."""
    return frozenset(_options_in(conf_directory()))


def _group_override(text: str, group: str, value: Any, options: list[str]) -> list[str]:
    if value in options:
        is_own_group = group not in _shipped_groups()
        return [f"+{text}" if is_own_group and not text.startswith("+") else text]
    if group == FREE_GROUP and isinstance(value, str) and value.strip():
        return [f"{group}.name={_quoted(value)}"]
    shown = text.partition("=")[2]
    free = ", a directory or a Hugging Face id" if group == FREE_GROUP else ""
    raise RequestError(
        f"{group}={shown} is no option of {group}{near_names(shown, options)}; "
        f"give one of {', '.join(options)}{free}"
    )


def _dropped_defaults(given: set[str]) -> list[str]:
    dropped = []
    for first, second in EXCLUSIVE:
        for this, other in ((first, second), (second, first)):
            if this in given and other not in given:
                dropped.append(f"{other}=null")
    return dropped


def _first_lines(error: Exception) -> str:
    """Return the useful part of a Hydra or OmegaConf message on one line."""
    while not str(error).strip() and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Hydra hands on what OmegaConf has said
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith(("object_type=", "full_key:"))]
    cause = error.__cause__
    if cause is not None and str(cause) and len(useful) == 1:
        useful.append(str(cause).splitlines()[0])
    keys = [line for line in lines if re.match(r"full_key:(?! hydra\.)", line)]
    return "; ".join([*useful[:3], *(f"key {key.split(':', 1)[1].strip()}" for key in keys[:1])])
