"""Importing the heavy libraries in less time leaves them what they are."""

import io
import logging
import os
import subprocess
import sys

import pytest

from harness.base.quick_imports import let_threads_sleep, quiet_libraries

_IMPORTED = """
from harness.training.libraries import import_libraries
import torch

real = torch.compile
import_libraries()
assert torch.compile is real
"""


def run_after_importing(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED + code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TORCH_COMPILE_DISABLE": "1"},  # called as it is: compiling takes a while
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_compiler_is_not_imported_for_what_bitsandbytes_compiles_which_still_works():
    said = run_after_importing("""
import sys
import bitsandbytes.backends.default.ops as ops

print(*sys.modules)
codes, scales = torch.tensor([0, 1, 1, 0]), torch.tensor([3.0, 5.0])
book = torch.tensor([-1.0, 1.0])
dense = ops._dequantize_blockwise_compute(codes, scales, book, 2, torch.float32)
assert dense.tolist() == [-3.0, 3.0, 5.0, -5.0]
""")
    assert "bitsandbytes.backends.default.ops" in said.split()  # which compiles functions
    assert not any(name.startswith("torch._inductor.codegen") for name in said.split())


def test_a_deferred_function_is_the_compiled_one():
    said = run_after_importing("""
from functools import partial
from harness.base.quick_imports import _compiled_when_called

def compile_now(function, **options):
    print("compiled", options)
    return lambda x: function(x) + 100

def double(x):
    "Return twice as much."
    return 2 * x

compile = partial(_compiled_when_called, compile_now)
for compiled in (compile(double), compile(dynamic=False)(double)):
    print(compiled.__doc__)
    print(compiled(1), compiled(2))
""")
    assert said.splitlines() == [
        *("Return twice as much.", "compiled {}", "102 104"),
        *("Return twice as much.", "compiled {'dynamic': False}", "102 104"),
    ]


def test_importing_the_base_prints_nothing() -> None:
    code = """
from harness.base.quick_imports import quiet_libraries
quiet_libraries()
import bitsandbytes, transformers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_threads_that_wait_give_their_core_away():
    """Spinning made steps of two threads on busy cores 19 times as long: pytorch/pytorch#57715, #80777."""
    code = (
        "from harness.base.quick_imports import quick_imports\nwith quick_imports(): import torch"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
    )
    if "GOMP_SPINCOUNT" in done.stderr:  # torch's own OpenMP is GNU's on Linux
        assert "GOMP_SPINCOUNT = '0'" in done.stderr


@pytest.mark.parametrize("given", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_who_says_how_threads_wait_means_it(given: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    let_threads_sleep()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
    monkeypatch.setenv(given, "1000")
    let_threads_sleep()
    assert os.environ[given] == "1000"
    assert given == "OMP_WAIT_POLICY" or "OMP_WAIT_POLICY" not in os.environ


def test_a_log_that_nobody_reads_any_more_prints_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    closed = io.StringIO()
    handler, logger = logging.StreamHandler(closed), logging.getLogger("tests.nobody")
    logger.addHandler(handler)
    closed.close()
    try:
        logger.warning("as it is")
        assert "Traceback" in capsys.readouterr().err
        quiet_libraries()
        logger.warning("as a command has it")
        assert "Traceback" not in capsys.readouterr().err
    finally:
        logger.removeHandler(handler)
