"""The heads of a Hybrid Task Cascade (Chen et al., 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from attnorm.config import HTCConfig
from attnorm.detection.batch import Detections, Size, Targets
from attnorm.detection.cascade import CascadeRoIHeads
from attnorm.detection.regions import Regions
from attnorm.detection.semantic import SemanticBranch, initialize, semantic_loss

SEMANTIC = "semantic"  # the branch's features, beside the maps of the pyramid


class HTCRoIHeads(CascadeRoIHeads):
    """A cascade whose tasks are interwoven, in the three ways of the paper's §3.

    A stage's mask head works on boxes that the same stage has moved ("interleaved execution"),
    with the features of the mask heads before it ("mask information flow"), and all heads see
    features of a branch that segments the whole image ("spatial contexts from segmentation").

    ``mask_flow`` has a 1×1 convolution for each stage but the first, which nothing flows into.

    Args:
        semantic_branch: the pyramid to logits and features of the whole image, or None.
        semantic_pool: (features, boxes) to features of each box, as ``mask_pool``'s in size,
            such as RoIAlign; None without a branch.
        parts: of the cascade.
    """

    def __init__(
        self,
        box_pool: nn.Module,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        mask_pool: nn.Module,
        mask_heads: Sequence[nn.Module],
        mask_predictors: Sequence[nn.Module],
        config: HTCConfig,
        semantic_branch: SemanticBranch | None = None,
        semantic_pool: nn.Module | None = None,
    ) -> None:
        super().__init__(
            box_pool, box_heads, box_predictors, mask_pool, mask_heads, mask_predictors, config
        )
        if (semantic_branch is None) != (semantic_pool is None):
            raise ValueError("a semantic branch needs a pool, and the other way round")
        self.semantic_branch, self.semantic_pool = semantic_branch, semantic_pool
        self._semantic_weight = config.semantic_weight
        flows = len(mask_heads) - 1 if config.mask_information_flow else 0
        self.mask_flow = nn.ModuleList(
            nn.Conv2d(config.channels, config.channels, 1) for _ in range(flows)
        )
        for conv in self.mask_flow:
            assert isinstance(conv, nn.Conv2d)
            initialize(conv)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: Sequence[Size],
        targets: Sequence[Targets] | None = None,
        semantic: Tensor | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """See the base class; ``loss_semantic`` besides, where there is a branch.

        Args:
            features: maps of the pyramid, (N, C, H, W) each.
            proposals: float32 (R, 4) of each image: x0, y0, x1, y1 in pixels of the input.
            sizes: of the N images inside the padding.
            targets: of the N images.
            semantic: int64 (N, H, W), classes from 0 on at the resolution of the branch, and 255
                for pixels that do not count; for training a branch.

        Raises:
            ValueError: a branch is to be trained without ``semantic``.
        """
        if self.semantic_branch is None:
            return super().forward(features, proposals, sizes, targets)
        logits, embedding = self.semantic_branch(features)
        found, losses = super().forward(
            {**features, SEMANTIC: embedding}, proposals, sizes, targets
        )
        if targets is not None:
            if semantic is None:
                raise ValueError("a semantic branch trains on semantic maps, and there are none")
            losses["loss_semantic"] = self._semantic_weight * semantic_loss(logits, semantic)
        return found, losses

    def _mask_regions(
        self,
        stage: int,
        regions: Regions,
        proposals: Sequence[Tensor],
        targets: Sequence[Targets],
    ) -> Regions:
        """Boxes that the stage has moved, matched and drawn once more."""
        return self._samplers[stage](proposals, targets)

    def _mask_features(self, stages: Sequence[int], pooled: Tensor) -> list[Tensor]:
        """Each stage gets the features of the one before it, on the same boxes."""
        if not self.mask_flow:
            return super()._mask_features(stages, pooled)
        by_stage: list[Tensor] = []
        for stage in range(max(stages) + 1):
            given = pooled
            if stage > 0:
                given = pooled + F.relu(self.mask_flow[stage - 1](by_stage[-1]))
            by_stage.append(self.mask_heads[stage](given))
        return [by_stage[stage] for stage in stages]

    def _pool_boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        pooled = super()._pool_boxes(features, boxes, sizes)
        if self.semantic_pool is None:
            return pooled
        semantic = self.semantic_pool(features[SEMANTIC], boxes)
        return pooled + F.adaptive_avg_pool2d(semantic, (pooled.shape[-2], pooled.shape[-1]))

    def _pool_masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sequence[Size]
    ) -> Tensor:
        pooled = super()._pool_masks(features, boxes, sizes)
        if self.semantic_pool is None:
            return pooled
        semantic: Tensor = self.semantic_pool(features[SEMANTIC], boxes)
        return pooled + semantic
