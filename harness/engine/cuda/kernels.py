"""Triton kernels of the captured pass. Imported on a GPU, or where the interpreter runs them on a CPU.

Sums are taken in float32 and rounded once to the tensor's type. Nothing here allocates, and nothing
depends on the order in which programs run: the same inputs give the same bits.
"""

# Kernels are compiled by Triton: their parameters have no Python types.
# pyright: reportMissingParameterType=false, reportGeneralTypeIssues=false, reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    summed_ptr,
    out_ptr,
    scale_ptr,
    groups,
    x_stride,
    out_stride,
    width,
    epsilon,
    HAS_RESIDUAL: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = weight * rms_normalized(x + residual), one row (of `groups` in a position) a program.

    ROUNDS: to x's type before the weight as well as after it.
    """
    row = tl.program_id(0)
    place = (row // groups).to(tl.int64)
    group = row % groups
    column = tl.arange(0, BLOCK)
    inside = column < width
    x_at = place * x_stride + group * width + column
    x = tl.load(x_ptr + x_at, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row.to(tl.int64) * width + column, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
        tl.store(summed_ptr + row.to(tl.int64) * width + column, x, mask=inside)
    wide = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + epsilon)
    tl.store(scale_ptr + row, scale)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    normed = wide * scale
    if ROUNDS:
        normed = normed.to(x.dtype).to(tl.float32)
    out = (normed * weight.to(tl.float32)).to(x.dtype)
    tl.store(out_ptr + place * out_stride + group * width + column, out, mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    scale_ptr,
    added_ptr,
    out_ptr,
    groups,
    grad_stride,
    x_stride,
    out_stride,
    width,
    HAS_ADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = added + the gradient of x, from that of weight * rms_normalized(x)."""
    row = tl.program_id(0)
    place = (row // groups).to(tl.int64)
    group = row % groups
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + place * x_stride + group * width + column, mask=inside, other=0.0)
    grad_at = place * grad_stride + group * width + column
    grad = tl.load(grad_ptr + grad_at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row)
    normed = x.to(tl.float32) * scale
    through = grad * weight
    mean = tl.sum(through * normed, axis=0) / width
    grad_x = scale * (through - normed * mean)
    if HAS_ADDED:
        added = tl.load(added_ptr + row.to(tl.int64) * width + column, mask=inside, other=0.0)
        grad_x += added.to(tl.float32)
    out_at = place * out_stride + group * width + column
    tl.store(out_ptr + out_at, grad_x.to(x.dtype), mask=inside)


@triton.jit
def rotate_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    heads,
    stride,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BACK: tl.constexpr,
):
    """Rotate the first `heads` heads of each position in place (RoPE); BACK: by the negative angle."""
    place = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half = tl.arange(0, HALF)
    inside = (head < heads)[:, None] & (half < SIZE // 2)[None, :]
    angle_inside = half < SIZE // 2
    cos_low = tl.load(cos_ptr + place * SIZE + half, mask=angle_inside, other=0.0).to(tl.float32)
    cos_high = tl.load(cos_ptr + place * SIZE + SIZE // 2 + half, mask=angle_inside, other=0.0)
    sin_low = tl.load(sin_ptr + place * SIZE + half, mask=angle_inside, other=0.0).to(tl.float32)
    sin_high = tl.load(sin_ptr + place * SIZE + SIZE // 2 + half, mask=angle_inside, other=0.0)
    cos_high, sin_high = cos_high.to(tl.float32), sin_high.to(tl.float32)
    low_at = place * stride + head[:, None] * SIZE + half[None, :]
    low = tl.load(x_ptr + low_at, mask=inside, other=0.0)
    high = tl.load(x_ptr + low_at + SIZE // 2, mask=inside, other=0.0)
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    if BACK:
        new_low = wide_low * cos_low[None, :] + wide_high * sin_high[None, :]
        new_high = wide_high * cos_high[None, :] - wide_low * sin_low[None, :]
    else:
        new_low = wide_low * cos_low[None, :] - wide_high * sin_low[None, :]
        new_high = wide_high * cos_high[None, :] + wide_low * sin_high[None, :]
    tl.store(x_ptr + low_at, new_low.to(low.dtype), mask=inside)
    tl.store(x_ptr + low_at + SIZE // 2, new_high.to(low.dtype), mask=inside)


@triton.jit
def _sigmoid_argument(gate, GELU: tl.constexpr):
    """Return z and its derivative where the activation of g is g * sigmoid(z): z = g in SiLU, and in GELU's
    tanh form 2 sqrt(2 / pi) (g + 0.044715 g^3)."""
    if GELU:
        cubic = 0.044715 * gate * gate
        z = 1.5957691216057308 * gate * (1.0 + cubic)
        slope = 1.5957691216057308 * (1.0 + 3.0 * cubic)
    else:
        z = gate
        slope = gate * 0.0 + 1.0
    return z, slope


@triton.jit
def gated_kernel(gate_up_ptr, out_ptr, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """out = activation(gate) * up; gate and up lie side by side in a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up_ptr + row * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * width + width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    z, _ = _sigmoid_argument(wide, GELU)
    active = (wide / (1.0 + tl.exp(-z))).to(gate.dtype).to(tl.float32)
    out = (active * up.to(tl.float32)).to(gate.dtype)
    tl.store(out_ptr + row * width + column, out, mask=inside)


@triton.jit
def gated_backward_kernel(gate_up_ptr, grad_ptr, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """Put the gradients of gate and up where they are, from that of activation(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate_at = gate_up_ptr + row * 2 * width + column
    gate = tl.load(gate_at, mask=inside, other=0.0)
    up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    z, slope = _sigmoid_argument(wide, GELU)
    sigmoid = 1.0 / (1.0 + tl.exp(-z))
    grad_up = grad * wide * sigmoid
    grad_gate = grad * up * sigmoid * (1.0 + wide * (1.0 - sigmoid) * slope)
    tl.store(gate_at, grad_gate.to(gate.dtype), mask=inside)
    tl.store(gate_at + width, grad_up.to(gate.dtype), mask=inside)


@triton.jit
def decode_kernel(
    packed_ptr,
    table_ptr,
    scale_ptr,
    nested_scale_ptr,
    nested_mean_ptr,
    dynamic_ptr,
    offset_ptr,
    offset_nested_scale_ptr,
    offset_nested_mean_ptr,
    out_ptr,
    count,
    half,
    block_size,
    nested_block,
    NESTED: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the weights behind BLOCK bytes: the first half of all in high nibbles, the second in low ones."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < half
    byte = tl.load(packed_ptr + at, mask=inside, other=0).to(tl.int32)
    for part in tl.static_range(2):
        code = (byte >> 4) if part == 0 else (byte & 15)
        place = at + part * half
        real = inside & (place < count)
        block = place // block_size
        value = tl.load(table_ptr + code)
        scale = _constant(
            scale_ptr,
            nested_scale_ptr,
            nested_mean_ptr,
            dynamic_ptr,
            block,
            nested_block,
            real,
            NESTED,
        )
        weight = value * scale
        if HAS_OFFSET:
            weight += _constant(
                offset_ptr,
                offset_nested_scale_ptr,
                offset_nested_mean_ptr,
                dynamic_ptr,
                block,
                nested_block,
                real,
                NESTED,
            )
        tl.store(out_ptr + place, weight.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _constant(
    stored_ptr,
    nested_scale_ptr,
    nested_mean_ptr,
    dynamic_ptr,
    block,
    nested_block,
    inside,
    NESTED: tl.constexpr,
):
    """Return a block's constant, plain or from its own 8 bits (QLoRA, section 3)."""
    constant = tl.load(stored_ptr + block, mask=inside, other=0).to(tl.float32)
    if NESTED:
        code = constant.to(tl.int32)
        scale = tl.load(nested_scale_ptr + block // nested_block, mask=inside, other=0.0)
        constant = tl.load(dynamic_ptr + code) * scale + tl.load(nested_mean_ptr)
    return constant


@triton.jit
def grouped_product_kernel(
    x_ptr,
    w_ptr,
    out_ptr,
    seat_of_tile_ptr,
    outputs,
    inputs,
    x_stride,
    out_stride,
    w_seat_stride,
    w_out_stride,
    w_in_stride,
    ADDS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
):
    """out[m, o] (+)= sum_i x[m, i] w[seat of m, o, i]; the rows of a tile belong to one seat."""
    tile = tl.program_id(0)
    seat = tl.load(seat_of_tile_ptr + tile).to(tl.int64)
    row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    out = tl.program_id(1) * OUT + tl.arange(0, OUT)
    step = tl.arange(0, IN)
    w_ptr += seat * w_seat_stride
    total = tl.zeros((ROWS, OUT), dtype=tl.float32)
    for start in range(0, inputs, IN):
        column = start + step
        x = tl.load(
            x_ptr + row[:, None] * x_stride + column[None, :],
            mask=(column < inputs)[None, :],
            other=0.0,
        )
        w = tl.load(
            w_ptr + column[:, None] * w_in_stride + out[None, :] * w_out_stride,
            mask=(column < inputs)[:, None] & (out < outputs)[None, :],
            other=0.0,
        )
        total += tl.dot(x, w, input_precision="ieee")
    inside = (out < outputs)[None, :] & (row >= 0)[:, None]
    at = out_ptr + row[:, None] * out_stride + out[None, :]
    if ADDS:
        total += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def grouped_outer_kernel(
    left_ptr,
    right_ptr,
    out_ptr,
    first_tile_ptr,
    end_tile_ptr,
    lefts,
    rights,
    left_stride,
    right_stride,
    out_seat_stride,
    out_stride,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
):
    """out[seat, l, r] += sum over the seat's rows m of left[m, l] right[m, r], in float32."""
    seat = tl.program_id(1)
    columns = tl.cdiv(rights, RIGHT)
    left = (tl.program_id(0) // columns) * LEFT + tl.arange(0, LEFT)
    right = (tl.program_id(0) % columns) * RIGHT + tl.arange(0, RIGHT)
    first = tl.load(first_tile_ptr + seat) * TILE
    end = tl.load(end_tile_ptr + seat) * TILE
    if first < end:
        total = tl.zeros((LEFT, RIGHT), dtype=tl.float32)
        for start in range(first, end, ROWS):
            row = (start + tl.arange(0, ROWS)).to(tl.int64)
            here = row < end
            left_rows = tl.load(
                left_ptr + row[None, :] * left_stride + left[:, None],
                mask=(left < lefts)[:, None] & here[None, :],
                other=0.0,
            )
            right_rows = tl.load(
                right_ptr + row[:, None] * right_stride + right[None, :],
                mask=here[:, None] & (right < rights)[None, :],
                other=0.0,
            )
            total += tl.dot(left_rows, right_rows, input_precision="ieee")
        inside = (left < lefts)[:, None] & (right < rights)[None, :]
        at = (
            out_ptr
            + seat.to(tl.int64) * out_seat_stride
            + left[:, None] * out_stride
            + right[None, :]
        )
        total += tl.load(at, mask=inside, other=0.0)
        tl.store(at, total, mask=inside)


@triton.jit
def token_loss_kernel(
    logits_ptr, target_ptr, weight_ptr, loss_ptr, width, stride, BLOCK: tl.constexpr
):
    """Write the cross-entropy of a row, and put its gradient times the row's weight where the logits are."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    target = tl.load(target_ptr + row)
    weight = tl.load(weight_ptr + row)
    highest = float("-inf")
    total = 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + column, mask=column < width, other=float("-inf")).to(tl.float32)
        new = tl.maximum(highest, tl.max(x, axis=0))
        total = total * tl.exp(highest - new) + tl.sum(tl.exp(x - new), axis=0)
        highest = new
    normalizer = highest + tl.log(total)
    tl.store(loss_ptr + row, normalizer - tl.load(logits_ptr + target).to(tl.float32))
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        x = tl.load(logits_ptr + column, mask=inside, other=float("-inf")).to(tl.float32)
        grad = tl.exp(x - normalizer) - tl.where(column == target, 1.0, 0.0)
        tl.store(logits_ptr + column, (grad * weight).to(logits_ptr.dtype.element_ty), mask=inside)


@triton.jit
def dropout_kernel(
    x_ptr,
    out_ptr,
    place_ptr,
    seat_of_tile_ptr,
    salt_ptr,
    high_ptr,
    threshold_ptr,
    width,
    ADDS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (+)= x where the mask of (seat's key, layer, place, channel) keeps it (harness.engine.dropout)."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    seat = tl.load(seat_of_tile_ptr + row // TILE)
    salt = tl.load(salt_ptr + seat).to(tl.uint32, bitcast=True)
    high = tl.load(high_ptr + seat).to(tl.uint32, bitcast=True)
    threshold = tl.load(threshold_ptr + seat)
    place = tl.load(place_ptr + row).to(tl.uint32, bitcast=True)
    words = _mix(place ^ salt) + column.to(tl.uint32) * 0x85EBCA6B
    bits = (_mix(words ^ high) >> 8).to(tl.int32)
    at = row.to(tl.int64) * width + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    kept = tl.where(bits >= threshold, x, 0.0)
    if ADDS:
        kept += tl.load(out_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + at, kept.to(x.dtype), mask=inside)


@triton.jit
def _mix(x):
    """Return lowbias32 of uint32 words."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def adamw_kernel(
    parameter_ptr,
    gradient_ptr,
    mean_ptr,
    square_ptr,
    computed_ptr,
    setting_ptr,
    moves_ptr,
    size,
    num_a,
    SETTINGS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Move one seat's parameters by AdamW (Loshchilov and Hutter 2019) and clear its gradient.

    A seat that does not move keeps everything but its gradient, which is cleared where `moves` is 0 and kept
    where it is negative: then the step is not complete.
    """
    seat = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    is_b = at >= num_a
    place = seat.to(tl.int64) * size + at
    moves = tl.load(moves_ptr + seat)
    setting_ptr += seat * SETTINGS
    if moves >= 0.0:
        if moves > 0.0:
            rate_a, rate_b = tl.load(setting_ptr), tl.load(setting_ptr + 1)
            beta1, beta2 = tl.load(setting_ptr + 2), tl.load(setting_ptr + 3)
            new1, new2 = tl.load(setting_ptr + 4), tl.load(setting_ptr + 5)
            epsilon, decay = tl.load(setting_ptr + 6), tl.load(setting_ptr + 7)
            correction1, correction2 = tl.load(setting_ptr + 8), tl.load(setting_ptr + 9)
            scale, factor = tl.load(setting_ptr + 10), tl.load(setting_ptr + 11)
            rate = tl.where(is_b, rate_b, rate_a)
            gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0)
            gradient *= tl.where(is_b, scale, 1.0) * factor
            mean = tl.load(mean_ptr + place, mask=inside, other=0.0)
            square = tl.load(square_ptr + place, mask=inside, other=0.0)
            parameter = tl.load(parameter_ptr + place, mask=inside, other=0.0)
            mean = beta1 * mean + new1 * gradient
            square = beta2 * square + new2 * gradient * gradient
            denominator = tl.sqrt(square) / tl.sqrt(correction2) + epsilon
            parameter = parameter * (1.0 - rate * decay) - rate / correction1 * mean / denominator
            tl.store(mean_ptr + place, mean, mask=inside)
            tl.store(square_ptr + place, square, mask=inside)
            tl.store(parameter_ptr + place, parameter, mask=inside)
            computed = parameter * tl.where(is_b, scale, 1.0)
            computed = computed.to(computed_ptr.dtype.element_ty)
            tl.store(computed_ptr + place, computed, mask=inside)
        tl.store(gradient_ptr + place, tl.zeros((BLOCK,), dtype=tl.float32), mask=inside)
