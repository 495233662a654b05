"""What of a pretrained body does not learn: freezing as in the paper (§4.2) and in its release."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from attnorm.detection.backbone import Backbone
from attnorm.errors import UserError
from attnorm.models import freeze_for_finetuning
from attnorm.norms import AttentiveNorm2d


def freeze(backbone: Backbone, mode: str, frozen_stages: int) -> None:
    """Freeze parts of the body, in place; call it after loading weights.

    A stage ends where a map of the pyramid is taken; everything before the first stage is the stem.
    In MobileNet-v2, whose maps come from ``blocks.1``, ``2``, ``4`` and ``6``, the stem is all
    before ``blocks.1``.

    Args:
        backbone: body and pyramid; the pyramid learns in any case.
        mode: paper: γ, β and running statistics of all normalizers, and the attention heads of the
            first stage of AN layers; other attention heads learn. released: running statistics are
            used and kept as they are, γ and β learn. none: nothing is frozen.
        frozen_stages: In both modes the stem, and this many stages, do not learn at all; -1: all of
            them do, but for what the mode freezes.

    Raises:
        UserError: there are fewer stages, or the stages of AN layers cannot be told apart.
    """
    if not -1 <= frozen_stages <= len(backbone.stages):
        raise UserError(
            f"detector.frozen_stages={frozen_stages} is not possible: the backbone has"
            f" {len(backbone.stages)} stages."
        )
    if mode == "none":
        return
    body = backbone.body
    if mode == "paper":
        _require_stages(body)
        freeze_for_finetuning(body)
    else:
        # For its running statistics alone, and so with all AN layers as one stage.
        freeze_for_finetuning(body, sites=_attentive_pattern(body))
        body.requires_grad_(True)
    for module in _leading_modules(backbone, frozen_stages):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def _leading_modules(backbone: Backbone, stages: int) -> Iterator[nn.Module]:
    """The stem's modules and those of the first ``stages``, in the order in which they stand."""
    modules = list(backbone.body.named_modules())
    if stages < 0:
        end = 0
    elif stages == 0:
        end = next(i for i, (name, _) in enumerate(modules) if name == backbone.stages[0])
    else:
        last = backbone.stages[stages - 1]
        inside = [i for i, (name, _) in enumerate(modules) if f"{name}.".startswith(f"{last}.")]
        end = inside[-1] + 1
    return (module for _, module in modules[:end])


def _attentive_names(body: nn.Module) -> list[str]:
    return [name for name, module in body.named_modules() if isinstance(module, AttentiveNorm2d)]


def _attentive_pattern(body: nn.Module) -> str | None:
    return "|".join(re.escape(name) for name in _attentive_names(body)) or None


def _require_stages(body: nn.Module) -> None:
    names = _attentive_names(body)
    if names and len({body.get_submodule(name).stage for name in names}) == 1:
        raise UserError(
            "detector.freeze=paper keeps the attention heads of the first stage as they are, but"
            f" arch.attentive_sites does not tell stages apart (all of {len(names)} are in one):\n"
            "let group 1 of the pattern be the stage, or use detector.freeze=released."
        )
