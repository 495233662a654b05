"""Masks of objects as the mask head sees them: resampled on the grid of a region."""

from __future__ import annotations

import torch
from torch import Tensor

from attnorm.detection.batch import Targets


@torch.no_grad()
def mask_targets(targets: Targets, matched: Tensor, rois: Tensor, size: int = 28) -> Tensor:
    """What the mask head should say of each region.

    Equals torchvision's ``roi_heads.project_masks_on_boxes``, RoIAlign of masks of the whole image
    with as many samples a cell as it has pixels. Bilinear interpolation on a grid is a product of
    one matrix for rows and one for columns, so a mask costs two products with its own window, and
    no mask of the whole image is made.

    Args:
        targets: of one image, with M objects.
        matched: int64 (P,), the object of each region, 0 to M - 1.
        rois: float32 (P, 4): x0, y0, x1, y1 in pixels of the network's input.
        size: side of the grid.

    Returns:
        float32 (P, ``size``, ``size``), 0 to 1.
    """
    masks = rois.new_zeros((len(rois), size, size), dtype=torch.float32)
    if len(rois) == 0:
        return masks
    windows = targets.masks.windows.to(rois.device)[matched].float()
    widths, heights = (windows[:, 2:] - windows[:, :2]).unbind(1)
    boxes = rois.float() - windows[:, :2].repeat(1, 2)
    across = _interpolation(boxes[:, 0], boxes[:, 2], widths, size)
    down = _interpolation(boxes[:, 1], boxes[:, 3], heights, size)
    objects = matched.tolist()
    bitmaps = targets.masks.bitmaps()
    # Under autocast the products would be in half precision.
    with torch.autocast(rois.device.type, enabled=False):
        for index in set(objects):
            rows = torch.tensor(
                [row for row, other in enumerate(objects) if other == index], device=rois.device
            )
            bitmap = bitmaps[index].float()
            height, width = bitmap.shape
            masks[rows] = down[rows, :, :height] @ bitmap @ across[rows, :, :width].mT
    return masks


def _interpolation(start: Tensor, end: Tensor, lengths: Tensor, bins: int) -> Tensor:
    """What each pixel of a line adds to each of ``bins`` equal parts of an interval.

    Args:
        start: float32 (P,), where the intervals begin, in pixels from the line's first.
        end: float32 (P,), where they end.
        lengths: float32 (P,), of the lines, in pixels.
        bins: parts of an interval.

    Returns:
        float32 (P, ``bins``, longest length).
    """
    # As RoIAlign (He et al., 2017, §3) has it in torchvision: an interval has at least one pixel,
    # a part has as many samples as pixels, rounded up; up to one pixel outside of the line they
    # see its last pixel, and further out nothing.
    side = (end - start).clamp(min=1)
    samples = (side / bins).ceil()[:, None, None]
    steps = torch.arange(int(samples.max()), device=start.device)
    parts = torch.arange(bins, device=start.device)[:, None]
    part = (side / bins)[:, None, None]
    limits = lengths[:, None, None]
    at = start[:, None, None] + parts * part + (steps + 0.5) * (part / samples)
    weight = ((at >= -1) & (at <= limits) & (steps < samples)) / samples
    at = torch.minimum(at.clamp(min=0), limits - 1)
    low = at.floor()
    high = torch.minimum(low + 1, limits - 1)
    fraction = at - low
    matrix = start.new_zeros((len(start), bins, int(lengths.max())))
    matrix.scatter_add_(2, low.long(), weight * (1 - fraction))
    return matrix.scatter_add_(2, high.long(), weight * fraction)
