"""What every normalizer of this project is, so that others can recognise one."""

from torch import nn


class Normalization(nn.Module):
    """Base class: parameters held *directly* by a normalizer are its scales and offsets.

    Weight decay, freezing and counting go by this class and by torch's own norm classes, never by
    parameter names or dimensions. Parameters of submodules, such as an attention head, are
    ordinary weights.
    """

    # Stage of the network that the layer was placed in, counted from 0.
    stage: int | None = None
