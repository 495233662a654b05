"""What the paper's Table 1 prints, and what has to be said about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """The table's four columns as printed: millions, 10⁹ (or not given), percent, percent."""

    paper_parameters_m: str
    paper_flops_g: str | None
    paper_top1_error: str
    paper_top5_error: str


@dataclass(frozen=True)
class PaperRow:
    label: str
    arch: str
    norm: str
    printed: Printed
    notes: tuple[str, ...] = ()


NOTES = {
    "ours": (
        "Our columns: every learnable parameter; multiply-accumulates of convolutions and matrix "
        "products at 224², by torch's counter; mean ± sample standard deviation, over the seeds "
        "under --runs, of each finished run's epoch of lowest top-1 error."
    ),
    "interval": (
        "Differences are in percentage points; in brackets the 95 % confidence interval that the "
        "seeds allow: Welch's t for the difference to BN under the same recipe, Student's t for "
        "that to a printed figure, whose own spread nobody knows. One seed gives no interval."
    ),
    "speed": (
        "img/s: median of the training intervals, all processes together, evaluation not counted. "
        "Hours: wall-clock hours of the whole run × processes, one process per GPU where there "
        "are GPUs; median over the seeds."
    ),
    "params": (
        "No one rule gives the paper's four AN counts. K = 12 in every layer makes ResNet-50 "
        "25,685,608 (25.69). Tools of 2019 summed leaf modules only and so left γ and β out: with "
        "the head of the later release that makes 44.71 (K = 10, 10, 20, 20), 30.28 (the same, AN "
        "for norm1 instead of norm2) and 3.56 (K = 10). Ours are true counts with the K of the "
        "later release: 10, 10, 20, 20, and 5, 5, 5, 5, 10, 10, 10 for MobileNet-v2."
    ),
    "flops": (
        "The paper's ResNet-50 figure counts convolution and FC multiply-accumulates, the other "
        "three come from a tool of 2019 that adds 4 per element for BN, 1 for ReLU, and takes "
        "2·in − 1 per output of a linear layer."
    ),
    "sn": (
        "Printed: the SN authors' pre-activation ResNet-50-v2 on 8 GPUs × 32 images, not retrained "
        "by the paper's authors. Ours is ResNet-50 as in the other rows, for which the SN authors "
        "report 77.49 % accuracy after 120 epochs of cosine. The paper gives no FLOPs."
    ),
    "se": "Printed: the SE authors' released model, not retrained by the paper's authors.",
    "later-50": "The authors' later table: 21.59 / 5.88 for ResNet-50-AN.",
    "later-101": "The authors' later table: 21.33 / 5.85 for ResNet-101-BN, 20.61 / 5.41 for -AN.",
}

ROWS = (
    PaperRow("ResNet-50-BN", "resnet50", "bn", Printed("25.56", "4.09", "23.01", "6.68")),
    PaperRow("ResNet-50-GN", "resnet50", "gn", Printed("25.56", "4.09", "23.52", "6.85")),
    PaperRow(
        "ResNet-50-SN (8,32)", "resnet50", "sn", Printed("25.56", None, "22.43", "6.35"), ("sn",)
    ),
    PaperRow("ResNet-50-SE", "resnet50", "se", Printed("28.09", "4.09", "22.37", "6.36"), ("se",)),
    PaperRow(
        "ResNet-50-AN",
        "resnet50",
        "an",
        Printed("25.69", "4.09", "22.00", "6.06"),
        ("params", "later-50"),
    ),
    PaperRow(
        "ResNet-101-BN",
        "resnet101",
        "bn",
        Printed("44.57", "8.12", "20.71", "5.43"),
        ("flops", "later-101"),
    ),
    PaperRow(
        "ResNet-101-AN",
        "resnet101",
        "an",
        Printed("44.71", "8.12", "20.06", "5.12"),
        ("params", "flops", "later-101"),
    ),
    PaperRow(
        "DenseNet-161-BN",
        "densenet161",
        "bn",
        Printed("28.73", "8.50", "22.35", "6.20"),
        ("flops",),
    ),
    PaperRow(
        "DenseNet-161-AN",
        "densenet161",
        "an",
        Printed("30.28", "8.50", "20.13", "4.94"),
        ("params", "flops"),
    ),
    PaperRow(
        "MobileNet-v2-BN",
        "mobilenetv2",
        "bn",
        Printed("3.50", "0.335", "28.69", "9.33"),
        ("flops",),
    ),
    PaperRow(
        "MobileNet-v2-AN",
        "mobilenetv2",
        "an",
        Printed("3.56", "0.335", "26.67", "8.56"),
        ("params", "flops"),
    ),
)
