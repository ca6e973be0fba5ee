"""Live and saved bytes of a pass by hand: each storage once, in the allocator's blocks of 512 bytes."""

import pytest
import torch

from harness.plan.tracing import LiveBytes, SavedOnMeta

META = torch.device("meta")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_storage_is_alive_from_its_making_until_nobody_has_it(device: str) -> None:
    before = torch.empty(1000, device=META)
    live = LiveBytes(device)
    with live:
        one = torch.empty(100, device=META)  # 400 bytes
        assert (live.live, live.peak) == (512, 512)
        other = torch.empty(129, device=META)  # 516
        assert live.live == 512 + 1024
        whole = torch.empty(128, device=META)  # 512
        assert live.live == 512 + 1024 + 512
        part = other[3:]
        before.add_(1)
        assert live.live == 512 + 1024 + 512, "a view has no storage of its own, nor what was there"
        del one, whole
        assert (live.live, live.peak) == (1024, 2048)
        parts = torch.split(part + 1, 50)  # 504 bytes
        assert (live.live, live.peak) == (1024 + 512, 2048)
        del other
        assert live.live == 1024 + 512, "a view keeps it"
        del part
        assert live.live == 512
        del parts
        assert (live.live, live.peak) == (0, 2048)


def test_what_only_data_decide_is_told_and_other_values_are_not() -> None:
    with LiveBytes("cpu"):
        assert bool(torch.empty((), dtype=torch.bool, device=META)) is True
        with pytest.raises(RuntimeError):
            torch.empty((), device=META).item()
        assert torch.tensor(3.5).item() == 3.5, "a tensor with data says what it holds"


@pytest.mark.parametrize(("device", "kind"), [("cpu", torch.bfloat16), ("cuda", torch.float32)])
def test_statistics_of_a_norm_have_the_type_of_the_devices_kernel(device, kind) -> None:
    x = torch.empty(4, 8, dtype=torch.bfloat16, device=META)
    with LiveBytes(device):
        out, mean, deviation = torch.native_layer_norm(x, [8], None, None, 1e-5)
    assert out.dtype is torch.bfloat16
    assert mean.dtype is deviation.dtype is kind
    assert mean.shape == (4, 1)


def test_what_is_saved_is_counted_once_and_without_what_is_excluded() -> None:
    weight = torch.empty(8, 8, device=META, requires_grad=True)
    x = torch.empty(4, 8, device=META, requires_grad=True)
    saved = SavedOnMeta([weight])
    with saved.counting():
        hidden = torch.nn.functional.linear(x, weight)  # saves x and its weight
        (hidden.sigmoid() * x).sum()  # saves the sigmoid's result, and x again
    assert saved.total == 2 * 4 * 8 * 4
    with SavedOnMeta([]).counting():
        torch.nn.functional.linear(x, weight)
    assert saved.total == 2 * 4 * 8 * 4, "outside nothing is counted"
    all_of_it = SavedOnMeta([])
    with all_of_it.counting():
        torch.nn.functional.linear(x, weight)
    assert all_of_it.total == 4 * 8 * 4 + 8 * 8 * 4
