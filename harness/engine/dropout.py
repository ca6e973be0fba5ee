"""Dropout masks, and NEFTune's noise, as a function of (run, micro-batch, layer, place, channel) alone.

A mask drawn from a generator depends on how many numbers were drawn before it, so on the device, on how rows
are laid out and on what is computed beside them. Here every element's bits are a hash of where it stands: the
same on a CPU and a GPU, in any company, in a share of the rows, recomputed as often as one likes.

The hash is the 32-bit finalizer "lowbias32" (C. Wellons, hash-prospector, bias 0.17), applied to the layer,
to the place and to the channel in turn. Shape suffixes: N positions, I inputs of a layer.
"""

import hashlib

import torch

_LAYER_STEP, _CHANNEL_STEP = 0x9E3779B9, 0x85EBCA6B
"""Odd multipliers: neighbouring layers and channels begin far apart."""
_RATE_BITS = 24
"""Bits that are compared with the rate: it is exact to 6e-8."""
_EMBEDDINGS = 0x3FFFFFFF
"""What stands for the embeddings among the layers."""


def dropout_key(seed: int, micro_batch: int) -> int:
    """Return the 62-bit key of the masks of one run's micro-batch (counted over its whole training)."""
    return _key(f"dropout {seed} {micro_batch}")


def noise_key(seed: int, micro_batch: int) -> int:
    """Return the 62-bit key of the noise of one run's micro-batch."""
    return _key(f"neftune {seed} {micro_batch}")


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def uniform_noise(key: int, places_N: torch.Tensor, channels: int) -> torch.Tensor:
    """Return float32 [N, channels] between -1 and 1, evenly spread, at these places of the run's
    micro-batch."""
    low, high = key_words(key)
    bits_NI = _bits(_signed(low ^ (_EMBEDDINGS * _LAYER_STEP)), high, places_N, channels)
    return bits_NI.float().add_(0.5).mul_(2.0 ** (1 - _RATE_BITS)).sub_(1)


def key_words(key: int) -> tuple[int, int]:
    """Return a key as two words below 2**31, as kernels take it."""
    return key & 0x7FFFFFFF, (key >> 31) & 0x7FFFFFFF


def threshold(rate: float) -> int:
    """Return the least value of the compared bits that is kept, for a dropout `rate` in [0, 1)."""
    return round(rate * 2**_RATE_BITS)


def keep_mask(
    key: int, layer: int, places_N: torch.Tensor, inputs: int, rate: float
) -> torch.Tensor:
    """Return bool [N, I]: which inputs of a layer are kept at these places of the run's micro-batch."""
    low, high = key_words(key)
    salt = _signed(low ^ (layer * _LAYER_STEP))
    return keep_mask_of_words(salt, high, places_N, inputs, threshold(rate))


def layer_salt(low_S: torch.Tensor, layer: int) -> torch.Tensor:
    """Return what stands for a layer and the low words int32 [S] of some keys."""
    return low_S ^ _signed(layer * _LAYER_STEP)


def keep_mask_of_words(
    salt: int | torch.Tensor,
    high: int | torch.Tensor,
    places_N: torch.Tensor,
    inputs: int,
    least: int | torch.Tensor,
) -> torch.Tensor:
    """Return the mask [N, I] for words and a `threshold` that are one for all, or int32 [N] for each
    place."""
    kept = _bits(salt, high, places_N, inputs)
    return kept >= (least if isinstance(least, int) else least.unsqueeze(1))


def _bits(
    salt: int | torch.Tensor, high: int | torch.Tensor, places_N: torch.Tensor, inputs: int
) -> torch.Tensor:
    """Return the bits of every element, int32 [N, I] below 2**24."""
    row_N1 = _mix(places_N.to(torch.int32) ^ salt).unsqueeze(1)
    channel_I = torch.arange(inputs, dtype=torch.int32, device=places_N.device)
    channel_I *= _signed(_CHANNEL_STEP)
    words_NI = row_N1 + channel_I
    bits_NI = _mix(words_NI ^ (high if isinstance(high, int) else high.unsqueeze(1)))
    return bits_NI.bitwise_right_shift_(8).bitwise_and_(2**_RATE_BITS - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Return lowbias32 of int32 words, in place; products wrap, and shifts fill with zeros."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(_signed(factor))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _signed(word: int) -> int:
    """Return the low 32 bits of `word` as torch's int32 holds them."""
    word &= 0xFFFFFFFF
    return word - 2**32 if word >= 2**31 else word
