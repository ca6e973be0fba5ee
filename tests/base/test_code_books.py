"""The 4-bit code books against hand-written rounding, bitsandbytes' own bytes and published errors."""

import pytest
import torch

from harness.base.code_books import CODE_BOOKS, CodeBook, Normalization, decode, encode, pack_halves
from harness.base.library_faults import cure_bitsandbytes
from harness.config.schema import QuantFormat

INT4, INT4_ASYM = CODE_BOOKS[QuantFormat.int4], CODE_BOOKS[QuantFormat.int4_asym]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    cure_bitsandbytes()


def round_trip(weight: torch.Tensor, book: CodeBook, block_size: int) -> torch.Tensor:
    encoded = encode(weight, book, block_size)
    return decode(
        encoded.packed,
        encoded.scale,
        encoded.offset,
        book=book,
        block_size=block_size,
        count=weight.numel(),
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


def test_every_four_bit_format_is_bitsandbytes_or_has_a_table() -> None:
    from harness.config.validate import FOUR_BIT

    assert set(FOUR_BIT) == {QuantFormat.nf4, QuantFormat.fp4, *CODE_BOOKS}


def test_a_tie_is_rounded_to_one_of_the_two_nearest() -> None:
    block = torch.zeros(64)
    block[0], block[1] = 14.0, 1.0  # 1/14 lies midway between 0/7 and 1/7
    assert round_trip(block, INT4, 64)[1].item() in (0.0, 2.0)


def test_decoder_on_bitsandbytes_nf4_bytes_equals_dequantize_4bit() -> None:
    import bitsandbytes.functional as bnb

    weight = torch.randn(128, 96, generator=torch.Generator().manual_seed(3))
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    high, low = packed.reshape(-1) >> 4, packed.reshape(-1) & 15  # theirs: pairs within a byte
    codes = torch.stack([high, low], dim=1).reshape(-1)
    assert state.code is not None
    book = CodeBook(values=tuple(state.code.tolist()), normalization=Normalization.absmax)
    decoded = decode(
        pack_halves(codes),
        state.absmax,
        None,
        book=book,
        block_size=64,
        count=weight.numel(),
        dtype=torch.float32,
    )
    assert torch.equal(decoded.view_as(weight), bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("count", [1, 2, 65, 197, 4098])
@pytest.mark.parametrize("block_size", [32, 64, 4096])
@pytest.mark.parametrize("book", [INT4, INT4_ASYM])
def test_any_number_of_weights_comes_back_within_half_a_level(
    count: int, block_size: int, book: CodeBook
) -> None:
    weight = torch.randn(count, generator=torch.Generator().manual_seed(count))
    encoded = encode(weight, book, block_size)
    assert encoded.packed.numel() == -(-count // 2)
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
