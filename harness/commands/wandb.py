"""`harness wandb`: where offline W&B files lie, and the one step that shows them online. Imports no wandb."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.config.compose import compose_run
from harness.config.schema import TrackerConfig
from harness.errors import RequestError
from harness.records.redact import message
from harness.sweeping.state import SweepDirectory, read_state

WANDB_HELP = """\
usage: harness wandb [NAME] [paths.out=DIRECTORY] [tracker.project=… tracker.entity=…] [--paths] [--json]

Prints where the offline W&B files of a sweep (or of all runs) lie, and how to see them online.
With --paths their directories only, one a line, as `xargs wandb sync` takes them.
"""


def wandb_command(words: Sequence[str], *, only_paths: bool, as_json: bool) -> int:
    """Print the offline directories and how to upload them. Raises RequestError where there are none."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise RequestError(f"harness wandb takes one sweep, got {', '.join(names)}")
    config = compose_run([word for word in words if "=" in word])
    out = Path(config.paths.out)
    places = _of_sweep(out, names[0]) if names else sorted(out.glob("*/*/wandb"))
    found = [run for place in places for run in sorted(place.glob("offline-run-*"))]
    if not found:
        raise RequestError(
            f"no offline W&B run under {out.absolute()}{f' belongs to {names[0]}' if names else ''}: "
            "tracker=wandb_offline, the default, writes them; tracker=wandb_online is online already"
        )
    if as_json:
        print(json.dumps({"directories": [str(run) for run in found]}))
    elif only_paths:
        print("\n".join(map(str, found)))
    else:
        print(message(_how(found, names, words, config.tracker)))
    return 0


def _of_sweep(out: Path, name: str) -> list[Path]:
    """Return the `wandb/` directories of a sweep's runs and of the sweep itself, which comes last."""
    directory = SweepDirectory(out, name)
    state = read_state(directory)
    runs = [out / "runs" / run.run_id / "wandb" for run in state.runs]
    return [*runs, directory.wandb]


def _how(
    found: Sequence[Path], names: Sequence[str], words: Sequence[str], tracker: TrackerConfig
) -> str:
    size = sum(file.stat().st_size for run in found for file in run.glob("*.wandb"))
    again = shlex.join(["harness", "wandb", *names, *(word for word in words if "=" in word)])
    project = shlex.join(
        [*(["-e", tracker.entity] if tracker.entity else []), "-p", tracker.project]
    )
    lines = [
        f"{len(found)} offline W&B runs, {size / 1e6:.1f} MB, the first at {found[0]}",
        "To see them online:",
        "  wandb login",
        f"  {again} --paths | xargs -d '\\n' wandb sync --yes {project}",
        "docs/wandb.md says what is in them, name by name.",
    ]
    return "\n".join(lines)
