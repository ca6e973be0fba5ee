"""Adapters that begin as a part of the dense weights, PiSSA and OLoRA: the rest is packed in their place."""

from collections.abc import Mapping
from typing import Any, assert_never

import torch
from torch import nn

from harness.base.build import Base, dense_weights
from harness.config.schema import LoraInit


def rewrites_base(init: LoraInit) -> bool:
    """Say whether an initialization changes the base, so that its adapter must train alone."""
    match init:
        case LoraInit.default | LoraInit.gaussian:
            return False
        case LoraInit.pissa | LoraInit.olora:
            return True
        case _ as unreachable:
            assert_never(unreachable)


def start_from_dense(
    base: Base, lora_layers: Mapping[str, Any], adapter: str, init: LoraInit
) -> None:
    """Let PEFT initialize an adapter from the dense weights, and store what it leaves of them.

    The weights are those of the model as it came, one layer at a time, and are rounded once: a rounded base
    has lost what these initializations look for.
    """
    for name, weight_OI in dense_weights(base):
        layer = lora_layers.get(name)
        if layer is None:
            continue
        packed = layer.base_layer
        layer.base_layer = dense = _dense(weight_OI.to(base.device, torch.float32, copy=True))
        if init is LoraInit.pissa:
            layer.pissa_init(adapter, "pissa")
        else:
            layer.olora_init(adapter)
        layer.base_layer = packed
        base.storage.overwrite(packed, dense.weight.data)


def _dense(weight_OI: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight_OI, requires_grad=False)
    return linear
