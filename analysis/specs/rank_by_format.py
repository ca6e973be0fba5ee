"""rank_by_format: each format and rank at the best learning rate that the search has tried there."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="rank_by_format",
        title="Formats and ranks, each at its best learning rate",
        rows=("quant", "lora.rank"),
        columns=("eval/loss", "eval/exact_match", "base/bits_per_param"),
        role=Role.search,
        choose=("optim.lr",),
        against={"quant": "nf4"},
    ),
)
