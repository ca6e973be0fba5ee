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
    loss_positions_N: torch.Tensor
    """Flat indices int64 (into B·T) of the positions that carry loss, ascending; found where the batch is
    made, so that no pass has to ask its device."""
    places_BT: torch.Tensor | None = None
    """Which position of its run's micro-batch, as the data set has its rows, each position is: what dropout
    masks go by. None: its own flat index."""

    @classmethod
    def of(
        cls,
        input_ids_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        segments_BT: torch.Tensor | None = None,
        places_BT: torch.Tensor | None = None,
    ) -> "Batch":
        """Return a batch whose targets say where it carries loss; the tensors lie on the CPU."""
        return cls(
            input_ids_BT=input_ids_BT,
            targets_BT=targets_BT,
            segments_BT=segments_BT,
            loss_positions_N=(targets_BT.reshape(-1) != NO_LOSS).nonzero().squeeze(1),
            places_BT=places_BT,
        )

    @property
    def num_loss_tokens(self) -> int:
        """Positions that carry loss."""
        return self.loss_positions_N.numel()

    @property
    def num_input_tokens(self) -> int:
        """Positions fed to the model, padding included."""
        return self.input_ids_BT.numel()

    @property
    def places(self) -> torch.Tensor:
        """`places_BT`, also where each position is its own place."""
        if self.places_BT is not None:
            return self.places_BT
        shape = self.input_ids_BT.shape
        return torch.arange(self.num_input_tokens, device=self.input_ids_BT.device).view(shape)

    def rows(self, start: int, stop: int) -> "Batch":
        """Return rows [start, stop); their positions keep their places."""
        segments_BT = self.segments_BT
        return Batch.of(
            self.input_ids_BT[start:stop],
            self.targets_BT[start:stop],
            None if segments_BT is None else segments_BT[start:stop],
            self.places[start:stop],
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""

        def there(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            input_ids_BT=there(self.input_ids_BT),
            targets_BT=there(self.targets_BT),
            segments_BT=None if self.segments_BT is None else there(self.segments_BT),
            loss_positions_N=there(self.loss_positions_N),
            places_BT=None if self.places_BT is None else there(self.places_BT),
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
        return Batch.of(
            self.input_ids_NT[rows].long(),
            self.targets_NT[rows].long(),
            None if segments is None else segments[rows].long(),
        )
