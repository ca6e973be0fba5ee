"""`harness sweep --help`, and the list of questions that are ready. Imports no torch."""

import textwrap

from harness.question.load import known_sweeps

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
