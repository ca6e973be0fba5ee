"""alpha: learning rates side by side, by alpha at rank 8, and by rank at alpha/rank 2; both share a cell."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="alpha_by_learning_rate",
        title="Loss by alpha at rank 8, for each learning rate",
        rows=("alpha",),
        across="optim.lr",
        columns=("eval/loss",),
        role=Role.search,
        where={"lora.rank": (8,)},
    ),
    Spec(
        name="rank_at_fixed_alpha_over_rank",
        title="Loss by rank at alpha/rank 2, for each learning rate",
        rows=("lora.rank",),
        across="optim.lr",
        columns=("eval/loss",),
        role=Role.search,
        where={"alpha/rank": (2.0,)},
    ),
)
