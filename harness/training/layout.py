"""How a micro-batch is laid out: without padding, as far as the model keeps examples in one row apart."""

import torch
import torch.nn.functional as F

from harness.config.schema import FloatType
from harness.data.compact import folded, trimmed
from harness.data.rows import Batch
from harness.engine.forward import target_logits
from harness.engine.shared_base import SharedBase

_TOLERANCE = {FloatType.float32: 1e-4, FloatType.bfloat16: 5e-2}
"""Mean difference of a token's loss, in nats, that rounding explains; an example that sees its neighbour
differs by tenths of a nat and more."""


def without_padding(shared: SharedBase, padded: Batch) -> Batch:
    """Return a batch of padded rows without most of its padding: the same examples, equal up to rounding.

    Several examples in a row are told apart by a mask, which not every architecture obeys (recurrent ones
    do not): the first such batch is computed both ways, and where losses differ rows are only trimmed.
    """
    batch = folded(padded)
    if batch.segments_BT is None or padded.segments_BT is not None:
        return batch
    if shared.keeps_examples_apart is None:
        shared.keeps_examples_apart = _losses_agree(shared, padded, batch)
    return batch if shared.keeps_examples_apart else trimmed(padded)


@torch.no_grad()
def _losses_agree(shared: SharedBase, one: Batch, other: Batch) -> bool:
    """Say whether the base without an adapter gives both layouts of a batch the same losses."""
    shared.recompute_activations(wanted=False)
    with shared.only(None):
        one_N, other_N = _sorted_losses(shared, one), _sorted_losses(shared, other)
    return bool((one_N - other_N).abs().mean() <= _TOLERANCE[shared.base.quant.compute_dtype])


def _sorted_losses(shared: SharedBase, batch: Batch) -> torch.Tensor:
    """Return the losses of all positions that carry one; the layouts have them in different orders."""
    logits_NV, targets_N = target_logits(shared.model, batch.to(shared.base.device))
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none").sort().values
