"""Dropout masks are a function of where an element stands, and look like independent coins."""

import hashlib

import numpy as np
import pytest
import torch

from harness.engine.dropout import (
    dropout_key,
    keep_mask,
    keep_mask_of_words,
    key_words,
    layer_salt,
    noise_key,
    threshold,
    uniform_noise,
)

PLACES = torch.arange(512)


def mask(key: int = 1, layer: int = 0, rate: float = 0.5, inputs: int = 256) -> torch.Tensor:
    return keep_mask(dropout_key(key, 0), layer, PLACES, inputs, rate)


def lowbias32(x: np.ndarray) -> np.ndarray:
    """The published hash, in unsigned arithmetic."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def test_bits_are_those_of_the_published_hash_in_unsigned_arithmetic() -> None:
    key, layer, inputs, rate = dropout_key(3, 5), 17, 100, 0.3
    low, high = key & 0x7FFFFFFF, (key >> 31) & 0x7FFFFFFF
    places = np.array([0, 1, 77, 2**31 - 1], dtype=np.uint32)
    salt = np.uint32((low ^ (layer * 0x9E3779B9)) & 0xFFFFFFFF)
    rows = lowbias32(places ^ salt)[:, None]
    channels = np.arange(inputs, dtype=np.uint32) * np.uint32(0x85EBCA6B)
    bits = lowbias32((rows + channels[None, :]) ^ np.uint32(high)) >> np.uint32(8)
    expected = bits >= round(rate * 2**24)
    got = keep_mask(key, layer, torch.from_numpy(places.astype(np.int64)), inputs, rate)
    assert np.array_equal(got.numpy(), expected)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked(rate: float) -> None:
    dropped = 1 - mask(rate=rate).double().mean().item()
    error = (rate * (1 - rate) / (512 * 256)) ** 0.5
    assert abs(dropped - rate) < 4 * error


def test_no_rate_drops_nothing() -> None:
    assert threshold(0.0) == 0
    assert bool(mask(rate=0.0).all())


def test_places_channels_layers_and_keys_are_independent() -> None:
    """Correlations of 131,072 coins with their neighbours stay within four standard errors."""
    one = mask().double() * 2 - 1
    others = {
        "layer": mask(layer=1).double() * 2 - 1,
        "key": mask(key=2).double() * 2 - 1,
        "place": one.roll(1, 0),
        "channel": one.roll(1, 1),
        "diagonal": one.roll((1, 1), (0, 1)),
        "transposed": (mask(inputs=512).double() * 2 - 1).mT[:256].mT.contiguous().roll(7, 1),
    }
    for name, other in others.items():
        assert abs((one * other).mean().item()) < 4 / (512 * 256) ** 0.5, name


def test_rows_and_columns_differ_no_more_than_coins_do() -> None:
    """The counts of each place and of each channel have the binomial's variance."""
    kept = mask(rate=0.5, inputs=512).double()
    for counts in (kept.sum(0), kept.sum(1)):
        assert 0.75 < counts.var().item() / (512 * 0.25) < 1.25


def test_a_share_of_the_places_has_its_share_of_the_mask() -> None:
    whole = mask()
    some = torch.tensor([400, 3, 3, 17])
    assert torch.equal(keep_mask(dropout_key(1, 0), 0, some, 256, 0.5), whole[some])


def test_noise_is_made_of_the_hashs_bits_in_the_middle_of_their_steps() -> None:
    key, channels, places = noise_key(3, 5), 7, np.array([0, 1, 77], dtype=np.uint32)
    low, high = key & 0x7FFFFFFF, (key >> 31) & 0x7FFFFFFF
    salt = np.uint32((low ^ (0x3FFFFFFF * 0x9E3779B9)) & 0xFFFFFFFF)
    rows = lowbias32(places ^ salt)[:, None]
    steps = np.arange(channels, dtype=np.uint32) * np.uint32(0x85EBCA6B)
    bits = lowbias32((rows + steps[None, :]) ^ np.uint32(high)) >> np.uint32(8)
    expected = (bits.astype(np.float64) + 0.5) / 2**23 - 1
    got = uniform_noise(key, torch.from_numpy(places.astype(np.int64)), channels)
    assert np.abs(got.double().numpy() - expected).max() < 2.0**-23


def test_keys_are_62_bits_of_the_hash_of_what_they_stand_for() -> None:
    for key, text in ((dropout_key(3, 5), b"dropout 3 5"), (noise_key(3, 5), b"neftune 3 5")):
        digest = hashlib.blake2b(text, digest_size=8).digest()
        assert key == int.from_bytes(digest, "little") // 4


def test_words_of_several_keys_give_each_place_its_own_mask() -> None:
    """As kernels draw them: salts, words and thresholds that differ from place to place."""
    keys, rates, layer = [dropout_key(seed, 0) for seed in range(3)], (0.1, 0.5, 0.9), 4
    low, high = (torch.tensor(words) for words in zip(*map(key_words, keys), strict=True))
    least = torch.tensor([threshold(rate) for rate in rates], dtype=torch.int32)
    salts = layer_salt(low.to(torch.int32), layer)
    places = torch.tensor([5, 6, 7])
    got = keep_mask_of_words(salts, high.to(torch.int32), places, 64, least)
    for row, (key, rate) in enumerate(zip(keys, rates, strict=True)):
        assert torch.equal(got[row], keep_mask(key, layer, places[row : row + 1], 64, rate)[0])
