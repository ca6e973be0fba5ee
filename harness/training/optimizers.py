"""The optimizer of one adapter, and the clipping of its gradient."""

from collections.abc import Sequence
from typing import Any, assert_never

import torch
from torch import nn

from harness.config.schema import OptimConfig, OptimizerName
from harness.engine.adapter import Adapter, FlatGradient
from harness.engine.cuda.seats import Moments
from harness.engine.whole_model import WholeModel


class AdapterOptimizer:
    """The optimizer of one adapter: A at `lr`, B and magnitudes at `lr * loraplus_ratio` (LoRA+).

    In full fine-tuning matrices and vectors: norms and biases do not decay, as in transformers' Trainer.
    """

    def __init__(self, adapter: Adapter, config: OptimConfig) -> None:
        self._adapter = adapter
        # AdamW goes element by element, so that the flat tensor does for all layers. bitsandbytes
        # chooses state and blocks tensor by tensor, and gets PEFT's.
        self._is_flat = config.name is OptimizerName.adamw
        if self._is_flat:
            self._parameters = [nn.Parameter(part) for part in adapter.halves(adapter.flat_P)]
            firsts, seconds = self._parameters[:1], self._parameters[1:]
        else:
            self._parameters = list(adapter.parameters.values())
            named = adapter.parameters.items()
            firsts = [p for name, p in named if adapter.is_in_first(name)]
            seconds = [p for name, p in named if not adapter.is_in_first(name)]
        decays = not isinstance(adapter, WholeModel)
        self.optimizer = _make(firsts, seconds, config, second_decays=decays)

    def step(self, gradient: FlatGradient, learning_rate: float) -> None:
        """Move the adapter by its gradient."""
        views = gradient.of_parameters
        if self._is_flat:
            views = self._adapter.halves(gradient.flat_P)
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.grad = view
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        self.optimizer.step()

    def moments(self) -> Moments | None:
        """Return what torch's AdamW keeps, in the adapter's layout; None before the first step."""
        if not self._is_flat or not self.optimizer.state:
            return None
        states = [self.optimizer.state[parameter] for parameter in self._parameters]
        return Moments(
            mean_P=torch.cat([state["exp_avg"] for state in states]),
            square_P=torch.cat([state["exp_avg_sq"] for state in states]),
        )

    def take_moments(self, moments: Moments, steps: int) -> None:
        """Go on from moments that were kept elsewhere, after so many steps."""
        assert self._is_flat
        if steps == 0:
            return
        means = self._adapter.halves(moments.mean_P)
        squares = self._adapter.halves(moments.square_P)
        for parameter, mean, square in zip(self._parameters, means, squares, strict=True):
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(steps), device=mean.device),
                "exp_avg": mean.clone(),
                "exp_avg_sq": square.clone(),
            }

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor of the optimizer's state."""
        return [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]


def _make(
    firsts: list[nn.Parameter],
    seconds: list[nn.Parameter],
    config: OptimConfig,
    *,
    second_decays: bool,
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": firsts, "ratio": 1.0},
        {"params": seconds, "ratio": config.loraplus_ratio},
    ]
    if not second_decays:
        groups[1]["weight_decay"] = 0.0
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    match config.name:
        case OptimizerName.adamw:
            return torch.optim.AdamW(groups, **common, fused=True)
        case OptimizerName.adamw_8bit:
            return _bitsandbytes("AdamW8bit", groups, common)
        case OptimizerName.paged_adamw_8bit:
            return _bitsandbytes("PagedAdamW8bit", groups, common)
        case OptimizerName.paged_adamw_32bit:
            return _bitsandbytes("PagedAdamW32bit", groups, common)
        case _ as unreachable:
            assert_never(unreachable)


def _bitsandbytes(
    name: str, groups: list[dict[str, Any]], common: dict[str, Any]
) -> torch.optim.Optimizer:
    import bitsandbytes.optim

    return getattr(bitsandbytes.optim, name)(groups, **common)


def clip_gradients(
    gradients: Sequence[FlatGradient], limits: Sequence[float | None]
) -> list[torch.Tensor]:
    """Scale each gradient in place to its own limit, if it has one; return the norms before.

    Norm and factor are those of `torch.nn.utils.clip_grad_norm_`, bit for bit: the norm of the parameters'
    norms. (One norm of the flat tensor errs by 6e-6 in float32: so many terms are summed one by one.)
    """
    parts = torch._foreach_norm([part for each in gradients for part in each.of_parameters])
    norms, flat, factors, start = [], [], [], 0
    for gradient, limit in zip(gradients, limits, strict=True):
        stop = start + len(gradient.of_parameters)
        norm = torch.linalg.vector_norm(torch.stack(parts[start:stop]))
        start = stop
        norms.append(norm)
        if limit is not None:
            flat.append(gradient.flat_P)
            factors.append(torch.clamp(limit / (norm + 1e-6), max=1.0))
    if flat:
        torch._foreach_mul_(flat, factors)
    return norms
