"""targets: target sets at the same number of parameters, each at its best learning rate."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="targets",
        title="Target modules at equal parameter budget, each at its best learning rate",
        rows=("targets",),
        columns=("eval/loss", "eval/exact_match", "adapter/trainable_params"),
        role=Role.search,
        choose=("optim.lr",),
        against={"targets": "all_linear"},
        published=("lora_targets",),
    ),
)
