"""Tokenized rows of fixed length and the batches cut from them. Imports torch, nothing of ours.

Shape suffixes: N rows of a set, B rows of a batch, T positions of a row.
"""

from dataclasses import dataclass

import torch

NO_LOSS = -100
"""Target of a position that carries no loss (torch's `ignore_index`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one forward pass sees.

    `targets_BT[b, t]` is the token that position t must predict, that is the token at t + 1 of the same
    example, or NO_LOSS. `segments_BT` numbers the examples packed into a row from 1, 0 is padding; None
    where a row is one example padded at the end: causal attention then needs no mask.
    """

    input_ids_BT: torch.Tensor
    targets_BT: torch.Tensor
    segments_BT: torch.Tensor | None

    @property
    def num_loss_tokens(self) -> int:
        """Positions that carry loss."""
        return int((self.targets_BT != NO_LOSS).sum())

    @property
    def num_input_tokens(self) -> int:
        """Positions fed to the model, padding included."""
        return self.input_ids_BT.numel()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        segments_BT = self.segments_BT
        return Batch(
            input_ids_BT=self.input_ids_BT.to(device, non_blocking=True),
            targets_BT=self.targets_BT.to(device, non_blocking=True),
            segments_BT=None if segments_BT is None else segments_BT.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """A tokenized split: int32 tensors [N, T] in the layout of `Batch`, all rows of one length T.

    `lengths_N` counts the positions of each row that are not padding; `source_N` is the index of the
    (first) example of each row in its split.
    """

    input_ids_NT: torch.Tensor
    targets_NT: torch.Tensor
    segments_NT: torch.Tensor | None
    lengths_N: torch.Tensor
    source_N: torch.Tensor

    def __len__(self) -> int:
        return self.input_ids_NT.shape[0]

    @property
    def row_length(self) -> int:
        """Positions per row, T."""
        return self.input_ids_NT.shape[1]

    def batch(self, rows: torch.Tensor | list[int] | slice) -> Batch:
        """Return the given rows as int64 tensors on the CPU."""
        segments = self.segments_NT
        return Batch(
            input_ids_BT=self.input_ids_NT[rows].long(),
            targets_BT=self.targets_NT[rows].long(),
            segments_BT=None if segments is None else segments[rows].long(),
        )
