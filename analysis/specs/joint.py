"""joint: for each target set and format the best that the search has found, with what it needs."""

from analysis.frame import Role
from analysis.spec import Spec

_REST = ("lora.rank", "lora.alpha_over_rank", "optim.lr", "quant.double_quant")

SPECS = (
    Spec(
        name="best_by_targets",
        title="The best trial of each target set",
        rows=("lora",),
        columns=("eval/loss", "memory/peak_bytes"),
        role=Role.search,
        choose=("quant.format", *_REST),
    ),
    Spec(
        name="best_by_format",
        title="The best trial of each format of the base",
        rows=("quant.format",),
        columns=("eval/loss", "memory/peak_bytes"),
        role=Role.search,
        choose=("lora", *_REST),
    ),
)
