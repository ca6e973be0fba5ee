"""Clipping and AdamW against torch and a computation by hand."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from harness.config.schema import LoraConfig, OptimConfig, QuantConfig, QuantFormat
from harness.engine.adapter import Adapter, FlatGradient
from harness.training.optimizers import AdapterOptimizer, clip_gradients
from tests.training.conftest import MakeBase


def gradient_of(*parts: torch.Tensor) -> FlatGradient:
    """Return a gradient of parameters that lie one after the other."""
    flat = torch.cat([part.flatten() for part in parts])
    views, start = [], 0
    for part in parts:
        views.append(flat[start : start + part.numel()].view(part.shape))
        start += part.numel()
    return cast(FlatGradient, SimpleNamespace(flat_P=flat, of_parameters=views))


def test_each_gradient_is_clipped_to_its_own_limit_as_torch_does() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [[torch.randn(5, 3, generator=generator) for _ in range(3)] for _ in range(4)]
    limits = [0.3, None, 1e9, 0.5]
    gradients = [gradient_of(*each) for each in parts]
    norms = clip_gradients(gradients, limits)
    for tensors, limit, gradient, norm in zip(parts, limits, gradients, norms, strict=True):
        weights = [nn.Parameter(torch.zeros_like(part)) for part in tensors]
        for weight, part in zip(weights, tensors, strict=True):
            weight.grad = part.clone()
        expected = nn.utils.clip_grad_norm_(weights, torch.inf if limit is None else limit)
        assert torch.equal(norm, expected)
        for view, weight in zip(gradient.of_parameters, weights, strict=True):
            assert weight.grad is not None
            assert torch.equal(view, weight.grad)


def test_two_steps_of_adamw_are_those_of_its_paper(make_base: MakeBase) -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64; B at four times A's rate (LoRA+)."""
    shared = make_base(QuantConfig(format=QuantFormat.none))
    adapter = shared.attach(LoraConfig(rank=2, alpha=4.0), 0)
    config = OptimConfig(
        lr=1.0,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-6,
        weight_decay=0.1,
        loraplus_ratio=4.0,
        steps=2,
    )
    optimizer = AdapterOptimizer(adapter, config)
    is_b = is_of_b(adapter)
    theta = adapter.flat_P.double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for step, rate in enumerate((1e-2, 3e-3), start=1):
        flat = torch.randn(theta.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step(cast(FlatGradient, gradient_in_layout(adapter, flat)), rate)
        g = flat.double()
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        rates = torch.where(is_b, 4 * rate, rate)
        move = (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-6)
        theta = theta * (1 - rates * 0.1) - rates * move
    torch.testing.assert_close(adapter.flat_P.double(), theta, rtol=1e-5, atol=1e-7)


def gradient_in_layout(adapter: Adapter, flat: torch.Tensor) -> Any:
    return SimpleNamespace(flat_P=flat, of_parameters=adapter.of_parameters(flat))


def is_of_b(adapter: Adapter) -> torch.Tensor:
    """Say of each number of an adapter whether it belongs to a B, by PEFT's names."""
    mask = torch.zeros(adapter.flat_P.shape)
    for name, view in zip(adapter.parameters, adapter.of_parameters(mask), strict=True):
        view.fill_(float(".lora_B." in name))
    return mask.bool()
