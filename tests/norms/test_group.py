"""Group counts for awkward channel numbers, and the definition (Wu and He, 2018, equation 3)."""

import pytest
import torch

from attnorm.norms.group import GroupNorm2d, keeps_channels_last, largest_group_count


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 32), (96, 32), (144, 24), (48, 24), (24, 24), (16, 16), (960, 32), (2208, 32), (37, 1)],
)
def test_the_group_count_is_the_largest_divisor_up_to_32(channels: int, groups: int) -> None:
    assert GroupNorm2d(channels).num_groups == groups
    assert largest_group_count(channels, 32) == groups


def test_fewer_groups_can_be_asked_for() -> None:
    assert GroupNorm2d(144, num_groups=8).num_groups == 8
    assert GroupNorm2d(144, num_groups=7).num_groups == 6


def test_every_group_of_every_image_is_normalized_by_its_own_statistics() -> None:
    layer = GroupNorm2d(6, num_groups=3).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64) * 3 + 7
    expected = torch.empty_like(x)
    for n in range(2):
        for g in range(3):
            part = x[n, 2 * g : 2 * g + 2]
            std = ((part - part.mean()).square().mean() + layer.eps).sqrt()
            expected[n, 2 * g : 2 * g + 2] = (part - part.mean()) / std
    expected = expected * layer.weight[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_what_torch_makes_of_channels_last_is_asked_and_not_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    assert keeps_channels_last(cpu)
    # As on a GPU before torch had a kernel for it.
    monkeypatch.setattr(
        torch.nn.functional, "group_norm", lambda x, groups: x.contiguous() + groups
    )
    assert not keeps_channels_last(cpu)
