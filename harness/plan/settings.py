"""What a plan is made for, beside the configuration: the `plan.*` keys and `--budget`. Imports no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.config.compose import NOT_A_GROUP, conf_directory
from harness.config.validate import MOST
from harness.errors import RequestError, near_names
from harness.question.goals import BYTE_UNITS

PREFIX = "plan."
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What stands in `plan.*`; a value that is None is taken from model and data."""

    shape: str | None = None
    """A published shape of conf/shape/ in the model's place: nothing is read but that file; `--table` takes
    several, with commas between them."""
    ranks: str | None = None
    """Ranks of `--table`, with commas between them."""
    device: str | None = None
    """`cpu` or `cuda`; none: what `resources.device` means on this machine."""
    cohort: int = 1
    """Runs that share a pass."""
    length: int | None = None
    """Positions per row; none: what the data's rows have, or `data.max_length` for a shape."""
    loss_tokens: int | None = None
    """Positions of a micro-batch that carry loss; none: what the data's rows have, or all for a shape."""
    tokens_per_second: float | None = None
    """Positions per second of one run, for the time; none: measured by a probe or a run alone, if any."""

    @property
    def ranks_of_table(self) -> list[int]:
        """The ranks that were given. Raises RequestError for what is no list of them."""
        words = [] if self.ranks is None else self.ranks.strip("[]").split(",")
        try:
            ranks = [int(word) for word in words]
        except ValueError:
            ranks = [0]
        if any(not 0 < rank <= MOST for rank in ranks):
            raise RequestError(
                f"plan.ranks={self.ranks} is no list of ranks; give whole numbers above 0, such as 1,2,8"
            )
        return ranks


def split_settings(overrides: Sequence[str]) -> tuple[PlanSettings, list[str]]:
    """Return the settings and the overrides of the configuration.

    Raises RequestError for an unknown key or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    rest = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not key.startswith(PREFIX):
            rest.append(override)
            continue
        name = key.removeprefix(PREFIX)
        known = {field.name: field.type for field in fields(PlanSettings)}
        if not equals or name not in known:
            names = [PREFIX + each for each in known]
            raise RequestError(
                f"unknown key {key}{near_names(key, names)}; a plan has {', '.join(names)}"
            )
        values[name] = _value(key, value, known[name])
    return PlanSettings(**values), rest


def _value(key: str, text: str, kind: Any) -> Any:
    if key == "plan.device" and text not in ("cpu", "cuda"):
        raise RequestError(f"{key}={text} is no device of a plan; give cpu or cuda")
    if kind == (str | None):
        return text
    number = float if kind == (float | None) else int
    try:
        value = number(text)
    except ValueError:  # no number, or one of 5,000 digits
        value = 0
    if not 0 < value <= MOST:
        what = "a whole number" if number is int else "a number"
        raise RequestError(f"{key}={text} is not {what} above 0 and up to {MOST:,}")
    return value


def parse_bytes(text: str, where: str) -> int:
    """Return the bytes that `24GiB` or `80 GB` means. Raises RequestError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    unit = match.group(2) or "B" if match else ""
    if match is None or unit not in BYTE_UNITS or not 0 < float(match.group(1)) < 1e18:
        raise RequestError(
            f"{where} {text!r} is no amount of memory; give a number with one of "
            f"{', '.join(BYTE_UNITS)}, such as 24GiB"
        )
    return int(float(match.group(1)) * BYTE_UNITS[unit])


def with_device_defaults(overrides: Sequence[str], settings: PlanSettings) -> list[str]:
    """Return the overrides with the compute types that are the planned device's defaults, wherever this runs.

    Raises RequestError for a model beside `plan.shape`, which would be ignored.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    model = sorted(given & {"model", "model.name", "model.revision"})
    if settings.shape is not None and model:
        raise RequestError(
            f"{', '.join(model)} would be ignored beside plan.shape; give one of them"
        )
    if settings.device is None:
        return list(overrides)
    on_gpu = settings.device == "cuda"
    defaults = {
        "quant.compute_dtype": "bfloat16" if on_gpu else "float32",
        "lora.compute_dtype": "${quant.compute_dtype}" if on_gpu else "float32",
    }
    missing = [f"{key}={value}" for key, value in defaults.items() if key not in given]
    return [*overrides, *missing]


# Shapes: published models' dimensions, one file each in conf/shape/ --------------------------------


def _directory() -> Path:
    return conf_directory() / NOT_A_GROUP


def shape_names() -> list[str]:
    """Return the names of the shapes, sorted."""
    return sorted(path.name.removesuffix(".yaml") for path in _directory().glob("*.yaml"))


def shape_config(name: str) -> dict[str, Any]:
    """Return the Hugging Face config fields of one shape, `model_type` among them.

    Raises RequestError for a name that is not there.
    """
    import yaml

    known = shape_names()
    if name not in known:
        raise RequestError(
            f"plan.shape={name} is not known; conf/shape/ has {', '.join(known)}"
            f"{near_names(name, known)}"
        )
    with (_directory() / f"{name}.yaml").open(encoding="utf-8") as file:
        return yaml.safe_load(file)
