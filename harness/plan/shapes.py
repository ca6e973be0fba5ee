"""Published model shapes as Hugging Face config fields, one file each in conf/shape/. Imports no torch."""

from pathlib import Path
from typing import Any

from harness.config.compose import NOT_A_GROUP, conf_directory
from harness.errors import RequestError, near_names


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
