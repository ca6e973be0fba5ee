"""The 4-bit code books against hand-written rounding, bitsandbytes' own bytes and published errors."""

import numpy as np
import pytest
import torch

from harness.base.code_books import (
    CODE_BOOKS,
    CodeBook,
    Encoded,
    code_book,
    decode,
    encode,
    pack,
    packed_rows,
    table,
    unpack,
)
from harness.base.quick_imports import quiet_libraries
from harness.base.storage import Blockwise, storage_of
from harness.config.schema import QuantConfig, QuantFormat
from harness.config.storage import BLOCKWISE

CPU = torch.device("cpu")

INT4, INT4_ASYM = CODE_BOOKS[QuantFormat.int4], CODE_BOOKS[QuantFormat.int4_asym]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    quiet_libraries()


def round_trip(weight: torch.Tensor, book: CodeBook, block_size: int) -> torch.Tensor:
    """Encode and decode a flat weight, as one of as many rows of 1 input."""
    encoded = encode(weight.view(-1, 1), book, block_size)
    return decoded(encoded, book, block_size, (weight.numel(), 1)).view(-1)


def decoded(
    encoded: Encoded, book: CodeBook, block_size: int, shape: tuple[int, int]
) -> torch.Tensor:
    return decode(
        encoded.packed,
        encoded.scale,
        encoded.offset,
        book=book,
        block_size=block_size,
        shape=shape,
        dtype=torch.float32,
    )


@pytest.mark.parametrize("block_size", [32, 64, 4096])
def test_int4_equals_hand_written_round_to_nearest(block_size: int) -> None:
    weight = torch.randn(3 * 4096, generator=torch.Generator().manual_seed(1))
    expected = torch.empty_like(weight)
    for start in range(0, len(weight), block_size):
        block = weight[start : start + block_size]
        absmax = block.abs().max()
        expected[start : start + block_size] = torch.round(block / absmax * 7) / 7 * absmax
    assert torch.equal(round_trip(weight, INT4, block_size), expected)


@pytest.mark.parametrize("block_size", [32, 64, 4096])
def test_int4_asym_equals_hand_written_min_max_grid(block_size: int) -> None:
    weight = torch.randn(3 * 4096, generator=torch.Generator().manual_seed(2))
    expected = torch.empty_like(weight)
    for start in range(0, len(weight), block_size):
        block = weight[start : start + block_size]
        low, span = block.min(), block.max() - block.min()
        level = torch.round((block - low) / span * 15)
        expected[start : start + block_size] = low + level / 15 * span
    torch.testing.assert_close(
        round_trip(weight, INT4_ASYM, block_size), expected, rtol=0, atol=1e-6
    )


def test_every_format_in_blocks_has_a_code_book() -> None:
    assert set(BLOCKWISE) == {*CODE_BOOKS, QuantFormat.af4}


def test_af4_is_the_published_code_for_blocks_of_64() -> None:
    """bitsandbytes has the values that Yoshida 2023 printed, and for no other block size."""
    import bitsandbytes.functional as bnb

    theirs = bnb.get_4bit_type("af4", device="cpu", blocksize=64)  # pyright: ignore[reportArgumentType]
    ours = table(code_book(QuantFormat.af4, 64), CPU)
    torch.testing.assert_close(ours, theirs.sort().values, rtol=0, atol=1e-7)


@pytest.mark.parametrize("block_size", [32, 1024])
def test_af4_s_values_are_the_medians_of_what_real_blocks_round_to_them(block_size: int) -> None:
    """Against blocks of normal numbers: half of each cell lies on either side of its value."""
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randn(2**20 // block_size, block_size, generator=generator, dtype=torch.float64)
    scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten()
    values = torch.tensor(code_book(QuantFormat.af4, block_size).values, dtype=torch.float64)
    edges = (values[1:] + values[:-1]) / 2
    edges[6:8] = 0  # beside zero, which joined later
    for index in (1, 4, 6, 8, 11, 14):
        cell = scaled[(scaled > edges[index - 1]) & (scaled < edges[index])]
        share = float((cell < values[index]).double().mean())
        assert abs(share - 0.5) < 3 * 0.5 / len(cell) ** 0.5, values[index]


def test_af4_errs_less_than_nf4_in_large_blocks_and_about_as_much_in_small_ones() -> None:
    """Yoshida 2023, by the mean absolute error."""
    weight = torch.randn(2**18, generator=torch.Generator().manual_seed(6))
    for block_size, at_most in ((64, 1.05), (1024, 1.0), (4096, 0.96)):
        af4, nf4 = (
            (round_trip(weight, code_book(each, block_size), block_size) - weight).abs().mean()
            for each in (QuantFormat.af4, QuantFormat.nf4)
        )
        assert af4 / nf4 < at_most


@pytest.mark.parametrize("rows", [1, 3, 8, 21, 64])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_indices_are_packed_at_their_bits_and_come_back(bits: int, rows: int) -> None:
    codes = torch.randint(2**bits, (rows, 5), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits, rows), codes)
    assert packed.shape == (packed_rows(rows, bits), 5)
    if rows % 8 == 0:
        assert 8 * packed.numel() == bits * codes.numel()


@pytest.mark.parametrize(("name", "levels"), [("int3_asym", 7), ("int2_asym", 3)])
@pytest.mark.parametrize("shape", [(64, 96), (43, 50), (5, 7), (1, 1)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_3_and_2_bit_affine_integers_are_those_of_float64_numpy(
    name: str, levels: int, shape: tuple[int, int], double_quant: bool
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    storage = storage_of(QuantConfig(format=QuantFormat(name), double_quant=double_quant))
    assert storage.bits == levels.bit_length()
    tensors = storage.encode(weight)
    ours = storage.decode(tensors, shape, torch.float32).double().numpy().reshape(-1)
    flat, expected = weight.double().numpy().reshape(-1), []
    assert isinstance(storage, Blockwise)
    scales = storage.constant("scale", tensors).double().numpy()
    offsets = storage.constant("offset", tensors).double().numpy()
    for block, start in enumerate(range(0, len(flat), 64)):
        part = flat[start : start + 64]
        low, span = part.min(), part.max() - part.min()
        level = np.rint((part - low) / span * levels) if span else np.zeros_like(part)
        expected.append(offsets[block] + level / levels * scales[block])
        assert double_quant or np.allclose([offsets[block], scales[block]], [low, span], rtol=1e-6)
    assert np.allclose(ours, np.concatenate(expected), rtol=0, atol=1e-6)


def test_a_tie_is_rounded_to_one_of_the_two_nearest() -> None:
    block = torch.zeros(64)
    block[0], block[1] = 14.0, 1.0  # 1/14 lies midway between 0/7 and 1/7
    assert round_trip(block, INT4, 64)[1].item() in (0.0, 2.0)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_the_values_of_a_book_that_bitsandbytes_encodes_are_its_own(name: str) -> None:
    import bitsandbytes.functional as bnb

    theirs = bnb.get_4bit_type(name, device="cpu")  # pyright: ignore[reportArgumentType]
    assert torch.equal(table(CODE_BOOKS[QuantFormat(name)], CPU), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize(
    ("shape", "block_size"),
    [((128, 128), 64), ((64, 1024), 1024), ((172, 64), 32), ((43, 128), 128), ((3, 64), 64)],
)
def test_nf4_and_fp4_decode_to_bitsandbytes_own_values(
    name: str, double_quant: bool, shape: tuple[int, int], block_size: int, dtype: torch.dtype
) -> None:
    """Rows that are whole blocks: where they are not, bitsandbytes' kernel for CPUs is wrong."""
    import bitsandbytes.functional as bnb

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    packed, state = bnb.quantize_4bit(
        weight, blocksize=block_size, compress_statistics=double_quant, quant_type=name
    )
    state.dtype = dtype
    quant = QuantConfig(format=QuantFormat(name), double_quant=double_quant, block_size=block_size)
    storage = storage_of(quant)
    ours = storage.decode(storage.encode(weight), shape, dtype)
    assert torch.equal(ours, bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(128, 96), (43, 50), (5, 7), (1, 1)])
def test_rows_that_are_no_whole_blocks_are_the_flat_weight_in_blocks(
    name: str, shape: tuple[int, int]
) -> None:
    import bitsandbytes.functional as bnb

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    flat = weight.view(1, -1)
    book = CODE_BOOKS[QuantFormat(name)]
    ours = decoded(encode(weight, book, 64), book, 64, shape)
    padded = torch.cat([flat, flat.new_zeros(1, -flat.numel() % 64)], dim=1)
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(padded, blocksize=64, quant_type=name))
    assert torch.equal(ours.view(1, -1), theirs[:, : flat.numel()])


@pytest.mark.parametrize("count", [1, 2, 65, 197, 4098])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
@pytest.mark.parametrize("book", [INT4, INT4_ASYM])
def test_any_number_of_weights_comes_back_within_half_a_level(
    count: int, block_size: int, book: CodeBook
) -> None:
    weight = torch.randn(count, generator=torch.Generator().manual_seed(count))
    encoded = encode(weight.view(-1, 1), book, block_size)
    assert encoded.packed.shape == (-(-count // 2), 1)
    levels = 14 if book is INT4 else 15
    span = encoded.scale.max() * (2 if book is INT4 else 1)
    error = (round_trip(weight, book, block_size) - weight).abs().max()
    assert error <= span / levels / 2 * 1.0001 + 1e-7


def test_a_block_of_equal_weights_is_kept() -> None:
    weight = torch.cat([torch.zeros(64), torch.full((64,), 0.25)])
    for book in (INT4, INT4_ASYM):
        torch.testing.assert_close(round_trip(weight, book, 64), weight)


@pytest.mark.parametrize(
    ("book", "block_size", "published"),
    [
        (INT4, 32, 0.0094),
        (INT4, 64, 0.0116),
        (INT4, 128, 0.0138),
        (INT4_ASYM, 32, 0.0061),
        (INT4_ASYM, 64, 0.0080),
        (INT4_ASYM, 128, 0.0100),
    ],
)
def test_mean_squared_error_on_a_normal_distribution(
    book: CodeBook, block_size: int, published: float
) -> None:
    weight = torch.randn(1 << 20, generator=torch.Generator().manual_seed(4))
    error = (round_trip(weight, book, block_size) - weight).square().mean().item()
    assert error == pytest.approx(published, abs=1e-4)
