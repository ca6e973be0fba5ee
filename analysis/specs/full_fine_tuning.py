"""full_fine_tuning: adapters beside full fine-tuning, each at its best learning rate, and what each costs."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="full_fine_tuning",
        title="Adapters against full fine-tuning, each at its best learning rate",
        rows=("trained",),
        columns=("eval/loss", "eval/exact_match", "adapter/trainable_params"),
        role=Role.search,
        choose=("optim.lr",),
        against={"trained": "all_parameters"},
    ),
)
