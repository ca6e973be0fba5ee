"""Inputs of checkpointed blocks that wait in the host's memory: the rest of what a GPU keeps for backward.

A checkpointed block keeps its input alone, and there are as many of these as blocks. Here each is copied to
pinned memory while the GPU computes on, and comes back when backward recomputes the block: the same values.
Unsloth's checkpointing does so; that of transformers (`offload=`) makes copies that the GPU waits for.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


@dataclass(slots=True)
class _Away:
    """A tensor that has left its device."""

    host: torch.Tensor | None
    """Its copy; on the meta device, where the planner counts what stays, there is none."""
    like: torch.Size
    dtype: torch.dtype
    device: torch.device
    copied: Any
    """The event of a GPU after which the copy is whole."""


class Offload:
    """Computes blocks with gradient checkpointing; while `is_used`, their inputs wait on the host."""

    def __init__(self) -> None:
        self.is_used = False
        self._streams: dict[torch.device, Any] = {}

    def install(self, model: Any) -> None:
        """Take the place of torch's function in every block of a model that can be checkpointed."""
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = self.checkpoint

    def checkpoint(self, function: Any, *inputs: Any) -> Any:
        """Compute `function` of `inputs`, and again in backward."""
        if not self.is_used:
            return checkpoint(function, *inputs, use_reentrant=False)
        # The hooks see the inputs alone: within the block those of checkpointing are the inner ones.
        with saved_tensors_hooks(self._pack, self._unpack):
            return checkpoint(function, *inputs, use_reentrant=False)

    def _pack(self, tensor: torch.Tensor) -> _Away:
        away = _Away(None, tensor.shape, tensor.dtype, tensor.device, None)
        if tensor.device.type == "meta":
            return away
        if not tensor.is_cuda:
            away.host = tensor.detach().clone()
            return away
        stream = self._stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            away.host = torch.empty_like(tensor, device="cpu", pin_memory=True)
            away.host.copy_(tensor.detach(), non_blocking=True)
            away.copied = stream.record_event()
        tensor.record_stream(stream)  # its memory is not handed out before it is copied
        return away

    def _unpack(self, away: _Away) -> torch.Tensor:
        if away.host is None:
            return torch.empty(away.like, dtype=away.dtype, device=away.device)
        if away.copied is not None:
            torch.cuda.current_stream(away.device).wait_event(away.copied)
        return away.host.to(away.device, non_blocking=True)

    def _stream(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]
