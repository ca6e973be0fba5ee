"""double_quant: each format with double quantization against the same format without."""

from analysis.frame import Role
from analysis.spec import Spec

SPECS = (
    Spec(
        name="double_quant",
        title="Double quantization against none, each format at its best learning rate",
        rows=("quant.format", "quant.double_quant"),
        columns=("eval/loss", "eval/exact_match", "base/bits_per_param"),
        role=Role.search,
        choose=("optim.lr",),
        against={"quant.double_quant": False},
        published=("qlora_mmlu",),
    ),
)
