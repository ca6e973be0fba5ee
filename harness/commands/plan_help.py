"""`harness plan --help`. Imports no torch."""

from dataclasses import fields

from harness.plan.settings import PREFIX, PlanSettings
from harness.plan.shapes import shape_names

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
