"""How a micro-batch is laid out: without padding, where the architecture keeps examples in one row apart."""

from harness.data.compact import folded, trimmed
from harness.data.rows import Batch
from harness.engine.shared_base import SharedBase


def without_padding(shared: SharedBase, padded: Batch) -> Batch:
    """Return a batch of padded rows without most of its padding: the same examples, equal up to rounding."""
    return folded(padded) if shared.why_apart is None else trimmed(padded)
