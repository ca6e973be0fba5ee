"""Importing torch and transformers in less time: most of what a plan or the start of a run takes.

Imports nothing heavy itself, so that it can be entered before anything is.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import heavy libraries inside this; nothing happens where they are there already.

    The garbage collector is off, which would walk over everything again and again while nothing becomes
    garbage, and what has been imported is not walked over later either. scipy stays unseen: transformers
    needs one function of it, for the losses of object detection.
    """
    if "transformers.modeling_utils" in sys.modules:
        yield
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _scipy_hidden():
            yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _scipy_hidden() -> Iterator[None]:
    import transformers.utils as utils

    real = utils.is_scipy_available
    utils.is_scipy_available = _not_available
    try:
        yield
    finally:
        utils.is_scipy_available = real


def _not_available() -> bool:
    return False
