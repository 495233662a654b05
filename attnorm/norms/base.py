"""What a normalizer is, so that others can recognise one."""

from torch import nn


class Normalization(nn.Module):
    """Base class: parameters held *directly* by a normalizer are its scales and offsets.

    Weight decay, freezing and counting go by :func:`is_normalizer`, never by parameter names or
    dimensions. Parameters of submodules, such as an attention head, are ordinary weights.
    """

    # Stage of the network that the layer was placed in, counted from 0.
    stage: int | None = None


# Every batch and instance norm of torch has this base, which has no public name.
_TORCH_NORMALIZERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def mark_as_normalizer(module: nn.Module) -> None:
    """Say that ``module`` stands where a normalizer does, whatever its class is."""
    module.stands_for_normalizer = True  # type: ignore[assignment]


def is_normalizer(module: nn.Module) -> bool:
    """Whether ``module`` itself normalizes.

    That are the normalizers of this project and of torch, and what was put in the place of one:
    timm has some that are plain modules.
    """
    return isinstance(module, (Normalization, *_TORCH_NORMALIZERS)) or hasattr(
        module, "stands_for_normalizer"
    )
