"""Which files a reader passes who follows one trial: `python -m tests.journey [--long]`.

Runs a search of one trial and takes the functions of the harness in the order in which they are first
called, those of the driver before those of the worker: the order in which somebody meets them who follows
the code. Printed are files, visits (times that the next function stands in another file than the one before)
and returns (visits to a file that had been left before). Few returns are what a good cut into files buys.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(os.environ.get("JOURNEY_PACKAGE", Path(__file__).resolve().parents[1] / "harness"))
QUESTION = """\
question: How is one trial followed?
expect: It is read from top to bottom.
base: [optim.steps=2, optim.batch_size=4, data.max_length=64, data.train_rows=16, data.validation_rows=8]
space: {optim.lr: "tag(log,interval(1e-4,1e-2))"}
search: {method: tpe, trials: 1}
objective: {eval/loss: minimize}
"""
INSIDE_A_RUN = {
    "adapters",
    "base",
    "data",
    "embedded",
    "engine",
    "evals",
    "measure",
    "plan",
    "tracking",
}
"""Rooms that know no trial: what they do is the same for `harness run`."""
RECORDER = """\
import os, sys, threading
seen, package = set(), os.environ["JOURNEY_PACKAGE"] + os.sep
role = "2-worker" if "harness.sweeping.worker" in sys.orig_argv else "1-driver"
out = open(os.path.join(os.environ["JOURNEY"], f"{role} {os.getpid():09d}"), "w", buffering=1)
def first_calls(frame, event, _):
    code = frame.f_code
    if event == "call" and code not in seen:
        seen.add(code)
        is_function = code.co_flags & 1 and code.co_name[0] != "<"  # no module, class body or lambda
        if is_function and code.co_filename.startswith(package):
            print(code.co_filename[len(package):], code.co_name, file=out)
sys.setprofile(first_calls)
threading.setprofile(first_calls)
"""


def followed() -> list[tuple[str, str]]:
    """Return (file, function) in the order of first calls."""
    with tempfile.TemporaryDirectory() as scratch:
        here, calls = Path(scratch), Path(scratch) / "calls"
        calls.mkdir()
        (here / "sitecustomize.py").write_text(RECORDER)
        (here / "one.yaml").write_text(QUESTION)
        paths = {
            "PYTHONPATH": f"{here}{os.pathsep}{PACKAGE.parent}",
            "JOURNEY": str(calls),
            "JOURNEY_PACKAGE": str(PACKAGE),
        }
        command = [sys.executable, "-m", "harness", "sweep", "one.yaml", "resources.devices=cpu"]
        subprocess.run(
            command, check=True, cwd=here, stdout=subprocess.DEVNULL, env={**os.environ, **paths}
        )
        lines = [line.split() for file in sorted(calls.iterdir()) for line in file.open()]
    return list(dict.fromkeys((file, function) for file, function in lines))


def visits(functions: Iterable[tuple[str, str]]) -> list[str]:
    """Return the file of each function, neighbours of one file once."""
    files = [file for file, _ in functions]
    return [file for file, before in zip(files, [None, *files], strict=False) if file != before]


def main() -> None:
    """Print the journey's length, and with --long each function and how often each file is visited."""
    functions = followed()
    of_the_trial = [each for each in functions if each[0].split("/")[0] not in INSIDE_A_RUN]
    if "--long" in sys.argv:
        print("\n".join(f"{file}: {function}" for file, function in of_the_trial))
        for file, count in Counter(visits(of_the_trial)).most_common():
            print(f"{count:3d} {file}")
    for name, each in (("trial", of_the_trial), ("all, with what a run does inside", functions)):
        seen = visits(each)
        files = len(set(seen))
        print(f"{name}: {files} files, {len(seen)} visits, {len(seen) - files} returns")


if __name__ == "__main__":
    main()
