"""Importing torch and transformers quietly and in less time: most of what a plan or the start of a run takes.

Imports nothing heavy itself, so that it can be entered before anything is.
"""

import atexit
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any


def quiet_libraries() -> None:
    """Keep load bars, deprecation notes and import-time warnings off the user's terminal, and the traceback
    that Python prints where a library's log has nobody to read it any more."""
    logging.raiseExceptions = False
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # bitsandbytes warns at import that a hub kernel cannot be loaded on AVX512-BF16 hosts.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(bitsandbytes|transformers|peft|accelerate)(\.|$)")


def let_threads_sleep() -> None:
    """Let threads that wait for others of their process give the core away; called before torch is loaded.

    By default they spin, and on a core that somebody else wants, too, each product then waits for a time
    slice: steps of 92 ms on one thread took 1,775 ms on two, at a load of 7 on two cores, and 160 ms so.
    Whoever has set one of these variables means it.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import heavy libraries inside this; nothing happens where they are there already.

    The garbage collector is off, which would walk over everything again and again while nothing becomes
    garbage, and what has been imported is not walked over later either. scipy stays unseen: transformers
    needs one function of it, for the losses of object detection. What a library compiles while it is being
    imported (bitsandbytes does) is compiled when it is first called: torch's compiler was 0.7 of 2.7 s.
    """
    if "transformers.modeling_utils" in sys.modules:
        yield
        return
    let_threads_sleep()
    enabled = gc.isenabled()
    gc.disable()
    try:
        import torch
        from transformers import utils

        deferred = partial(_compiled_when_called, torch.compile)
        no_scipy = replaced(utils, "is_scipy_available", lambda: False)
        with no_scipy, replaced(torch, "compile", deferred):
            yield
    finally:
        gc.freeze()
        if "triton" in sys.modules:  # it complains on stderr where it is not collected in the end
            atexit.register(_collect_in_the_end)
        if enabled:
            gc.enable()


def _collect_in_the_end() -> None:
    """Let the interpreter's own last collection find what was frozen, and make no other before that."""
    gc.unfreeze()
    gc.disable()


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Let a name in a library's module mean something else inside this."""
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


def _compiled_when_called(
    compile_now: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """Return what `torch.compile` would, without importing its compiler yet; a decorator too."""
    if function is None:
        return partial(_compiled_when_called, compile_now, **options)
    compiled = cache(lambda: compile_now(function, **options))

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call
