"""Compile every kernel for compute capability 9.0 and print its name; needs Triton, and no GPU."""

# pyright: reportMissingImports=false

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from harness.engine.cuda import kernels

B, F, N, U = "*bf16", "*fp32", "*i32", "*u8"
TARGET = GPUTarget("cuda", 90, 32)


def constants(nested: bool) -> dict[str, str]:
    """Return the types of a decoded layer's constants, plain or doubly quantized."""
    scales = ("nested_scale_ptr", "nested_mean_ptr", "dynamic_ptr")
    offsets = ("offset_nested_scale_ptr", "offset_nested_mean_ptr")
    found: dict[str, str] = dict.fromkeys((*scales, *offsets), F)
    return found | dict.fromkeys(("scale_ptr", "offset_ptr"), U if nested else F)


CASES: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    *(
        (
            "decode_kernel",
            {"packed_ptr": U, "table_ptr": F, "out_ptr": B, **constants(nested)},
            {"NESTED": nested, "HAS_OFFSET": True, "BLOCK": 1024},
        )
        for nested in (True, False)
    ),
    *(
        (
            "rms_norm_kernel",
            {**dict.fromkeys(("x_ptr", "residual_ptr", "summed_ptr", "out_ptr"), B)}
            | {"weight_ptr": B if rounds else F, "scale_ptr": F, "epsilon": "fp32"},
            {"HAS_RESIDUAL": True, "ROUNDS": rounds, "BLOCK": 2048},
        )
        for rounds in (True, False)
    ),
    (
        "rms_norm_backward_kernel",
        dict.fromkeys(("grad_ptr", "x_ptr", "weight_ptr", "added_ptr", "out_ptr"), B)
        | {"scale_ptr": F},
        {"HAS_ADDED": True, "BLOCK": 2048},
    ),
    *(
        (
            "rotate_kernel",
            dict.fromkeys(("x_ptr", "cos_ptr", "sin_ptr"), B),
            {"SIZE": 64, "HALF": 32, "HEADS": 16, "BACK": back},
        )
        for back in (True, False)
    ),
    *(
        (name, dict.fromkeys(("gate_up_ptr", other), B), {"GELU": gelu, "BLOCK": 1024})
        for name, other in (("gated_kernel", "out_ptr"), ("gated_backward_kernel", "grad_ptr"))
        for gelu in (True, False)
    ),
    (
        "grouped_product_kernel",
        {"x_ptr": B, "w_ptr": B, "out_ptr": B, "seat_of_tile_ptr": N},
        {"ADDS": True, "ROWS": 64, "OUT": 64, "IN": 64},
    ),
    (
        "grouped_outer_kernel",
        {"left_ptr": B, "right_ptr": B, "out_ptr": F, "first_tile_ptr": N, "end_tile_ptr": N},
        {"TILE": 64, "ROWS": 64, "LEFT": 128, "RIGHT": 16},
    ),
    (
        "token_loss_kernel",
        {"logits_ptr": B, "target_ptr": N, "weight_ptr": F, "loss_ptr": F},
        {"BLOCK": 4096},
    ),
    (
        "dropout_kernel",
        {"x_ptr": B, "out_ptr": B}
        | dict.fromkeys(
            ("place_ptr", "seat_of_tile_ptr", "salt_ptr", "high_ptr", "threshold_ptr"), N
        ),
        {"ADDS": True, "TILE": 64, "BLOCK": 1024},
    ),
    (
        "adamw_kernel",
        dict.fromkeys(
            ("parameter_ptr", "gradient_ptr", "mean_ptr", "square_ptr", "setting_ptr", "moves_ptr"),
            F,
        )
        | {"computed_ptr": B},
        {"SETTINGS": 12, "BLOCK": 1024},
    ),
]


def main() -> None:
    """Compile all of them."""
    names = set()
    for name, types, fixed in CASES:
        kernel = getattr(kernels, name)
        signature = {
            each: types.get(each, "constexpr" if each in fixed else "i32")
            for each in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
        triton.compile(source, target=TARGET)
        names.add(name)
    print("\n".join(sorted(names)))


if __name__ == "__main__":
    main()
