"""`harness run -m`: Hydra's multirun, as a grid that the driver of `harness sweep` trains.

Not by a plugin of Hydra's own: that would be called after Hydra has composed the overrides without what
`harness run` adds to its grammar (any model by name, short forms, keys of which one takes the other's place).
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.commands.sweep import read_question_tree, sweep_command
from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.parsing import Unreadable
from harness.question.question import question_of
from harness.records.run_directory import write_text

_ASKED = ("base", "space", "search", "objective", "constraints", "confirm")
"""The parts of a question that make it another one."""
_NO_NAME = "multirun"


def multirun_command(overrides: Sequence[str], *, as_json: bool) -> int:
    """Train every combination of the values given; returns the exit code of the sweep.

    The question is kept as `<out>/sweeps/NAME.yaml`, for `harness sweep`. The same command goes on with it:
    NAME is derived from what is asked, or given as `name=NAME`. Raises RequestError where no key has several
    values, or where the file holds another question.
    """
    words = shlex.join(overrides)
    asked = {"question": f"harness run -m {words}", "space": {}, "search": {"method": "grid"}}
    question = question_of(asked, _NO_NAME, [_with_seeds(override) for override in overrides])
    if not question.space.axes and len(question.search.seeds) == 1:
        raise RequestError(
            f"-m {words}: no key has several values; write lora.rank=2,8 or seed=0,1, or leave -m out"
        )
    tree = question.tree()
    if question.name == _NO_NAME:
        tree["name"] = _name_of(tree)
    out = Path(compose_run(question.base).paths.out)
    file = out / "sweeps" / f"{tree['name']}.yaml"
    is_new = _keep(file, tree)
    try:
        return sweep_command(str(file), [], dry_run=False, as_json=as_json)
    except RequestError:
        if is_new:
            file.unlink()
        raise


def _with_seeds(override: str) -> str:
    """Return `seed=0,1` as the question calls it: replicates of every cell."""
    key, _, value = override.partition("=")
    if key != "seed":
        return override
    return f"search.seeds=[{value.removeprefix('choice(').removesuffix(')')}]"


def _name_of(tree: dict[str, Any]) -> str:
    text = json.dumps({part: tree[part] for part in _ASKED}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{'-'.join([_NO_NAME, *sorted(tree['space'])])[:80]}-{digest}"


def _keep(file: Path, tree: dict[str, Any]) -> bool:
    """Write the question, unless the file holds another one; returns whether there was no file."""
    is_new = not file.exists()
    if not is_new:
        try:
            before = read_question_tree(file)
        except Unreadable as error:
            raise RequestError(
                f"{file} cannot be read as YAML: {error}; move it away, or give name=OTHER"
            ) from error
        different = [part for part in _ASKED if before.get(part) != tree[part]]
        if different:
            raise RequestError(
                f"{file} asks for another {', '.join(different)}; give name=OTHER, or `harness sweep {file}`"
            )
        tree = tree | {
            "space": before.get("space", tree["space"])
        }  # in the order in which its trials are numbered
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return is_new
