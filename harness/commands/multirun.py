"""`harness run -m`: Hydra's multirun, as a grid that the driver of `harness sweep` trains.

Not by a plugin of Hydra's own: that would be called after Hydra has composed the overrides without what
`harness run` adds to its grammar (any model by name, short forms, keys of which one takes the other's place).
"""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.commands.sweep import checked, show_what_would_run, sweep_command
from harness.config.compose import compose_run
from harness.errors import RequestError
from harness.question.load import (
    load_question,
    question_of,
    question_text,
    refuse_secrets_with_effect,
)
from harness.question.question import Question, comparable, refuse_another
from harness.records.run_directory import write_text

_NO_NAME = "multirun"


def multirun_command(overrides: Sequence[str], *, dry_run: bool, as_json: bool) -> int:
    """Train every combination of the values given, or show them; returns the exit code of the sweep.

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
    if question.name == _NO_NAME:
        question = replace(question, name=_name_of(question))
    if dry_run:
        show_what_would_run(question, *checked(question))
        return 0
    out = Path(compose_run(question.base).paths.out)
    file = out / "sweeps" / f"{question.name}.yaml"
    is_new = _keep(file, question)
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


def _name_of(question: Question) -> str:
    asked = comparable(question)
    asked["space"].sort()
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    keys = sorted(axis.key for axis in question.space.axes)
    return f"{'-'.join([_NO_NAME, *keys])[:80]}-{digest}"


def _keep(file: Path, question: Question) -> bool:
    """Write the question, unless the file holds another one; returns whether there was no file."""
    refuse_secrets_with_effect(question)
    is_new = not file.exists()
    if not is_new:
        before = load_question(str(file), [])
        if set(before.space.axes) == set(question.space.axes):
            question = replace(question, space=before.space)  # in the order of its trials' numbers
        refuse_another(str(file), comparable(before), comparable(question))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, question_text(question))
    return is_new
