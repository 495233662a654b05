"""What the paper's Tables 2, 3 and 4 print, what its authors released, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

TITLES = {
    2: "Table 2: Mask R-CNN on COCO",
    3: "Table 3: Cascade Mask R-CNN and HTC on COCO",
    4: "Table 4: Mask R-CNN with MobileNet-v2 on COCO",
}
# The table's columns, as metrics of a run.
METRICS = ("box_AP", "box_AP50", "box_AP75", "mask_AP", "mask_AP50", "mask_AP75")


@dataclass(frozen=True)
class Released:
    """What the authors' later code lists; parameters in millions."""

    parameters_m: str
    box_AP: str | None = None
    mask_AP: str | None = None


@dataclass(frozen=True)
class PaperRow:
    """One line of a table.

    Attributes:
        head: the normalizer of the heads, as printed.
        experiment: the file of configs/experiment/ that trains it.
        printed: by metric, in percent as printed; what is not printed is left out.
    """

    table: int
    label: str
    head: str
    experiment: str
    printed: dict[str, str]
    released: Released | None = None
    notes: tuple[str, ...] = ()


NOTES = {
    "ours": (
        "Our columns: every parameter, frozen ones too, with COCO's 80 classes; AP in percent as "
        "COCO's own evaluation counts it, mean ± sample standard deviation, over the seeds under "
        "--runs, of each finished run's epoch of highest box AP."
    ),
    "interval": (
        "Differences are in points of AP; in brackets the 95 % confidence interval that the seeds "
        "allow (Welch's t). One seed gives no interval. Ours are to frozen BN with the same box "
        "head under the same recipe or, where there is none, with the other one (marked ‡)."
    ),
    "speed": (
        "img/s: median of the training intervals, all processes together, evaluation not counted. "
        "Hours: wall-clock hours of the whole run × processes, one process per GPU where there "
        "are GPUs; median over the seeds."
    ),
    "detectron": "Printed: Detectron's model zoo, not trained by the paper's authors.",
    "mmdet": "Printed: mmdetection v1's model zoo, not trained by the paper's authors.",
    "two-codes": (
        "Detectron's figure; mmdetection v1, on which the authors trained AN, lists 38.5 / 35.1 "
        "for the same network. Part of the printed gain in mask AP is between the two."
    ),
    "sn": (
        "Printed: the SN authors, whose repository lists 41.01 / 36.12 for it. †: the statistics "
        "of instances and layers alone."
    ),
    "release": (
        "Release: the authors' later code. Every Mask R-CNN there, BN's too, has a box head of "
        "four convolutions and one fully connected layer (detector.box_head=4conv1fc), where the "
        "paper's BN has two fully connected layers: against the release's own BN, AN in the "
        "backbone gains 1.6 / 1.2 with ResNet-50 and 1.7 / 1.4 with ResNet-101."
    ),
    "head": (
        "AN (w/ GN) is on the four convolutions of the box head alone, K = 10, 10, 20, 20; mask "
        "head and pyramid have GN. That is what the release's parameters say."
    ),
    "htc": (
        "No HTC was released. The first stage's mask head, which has no earlier one to listen to, "
        "has no convolution for it here: 65,792 parameters fewer than in mmdetection v1."
    ),
    "mobilenet": (
        "No such detector was released, and the paper does not say which box head it has. Ours: "
        "two fully connected layers, and the 320 channels of the last block."
    ),
}
GENERAL = ("ours", "interval", "speed", "release")


def _printed(*figures: str) -> dict[str, str]:
    names = METRICS if len(figures) == len(METRICS) else ("box_AP", "mask_AP")
    return dict(zip(names, figures, strict=True))


ROWS = (
    PaperRow(
        2,
        "ResNet-50, BN*",
        "–",
        "table2/resnet50_bn",
        _printed("38.6", "59.8", "42.1", "34.5", "56.4", "36.3"),
        Released("45.71", "39.2", "35.2"),
        ("detectron", "two-codes"),
    ),
    PaperRow(
        2,
        "ResNet-50, GN",
        "GN",
        "table2/resnet50_gn",
        _printed("40.3", "61.0", "44.0", "35.7", "57.9", "37.7"),
        Released("45.72"),
        ("detectron",),
    ),
    PaperRow(
        2,
        "ResNet-50, SN",
        "SN†",
        "table2/resnet50_sn",
        _printed("41.0", "62.3", "45.1", "36.5", "58.9", "38.7"),
        None,
        ("sn",),
    ),
    PaperRow(
        2,
        "ResNet-50, AN (w/ BN)",
        "–",
        "table2/resnet50_an",
        _printed("40.5", "62.4", "44.1", "36.5", "59.2", "38.5"),
        Released("45.91", "40.8", "36.4"),
    ),
    PaperRow(
        2,
        "ResNet-50, AN (w/ BN)",
        "AN (w/ GN)",
        "table2/resnet50_an_an_head",
        _printed("41.5", "62.2", "45.3", "37.1", "59.6", "39.5"),
        Released("45.96", "41.6", "37.4"),
        ("head",),
    ),
    PaperRow(
        2,
        "ResNet-101, BN*",
        "–",
        "table2/resnet101_bn",
        _printed("40.3", "61.5", "44.1", "36.5", "58.1", "39.1"),
        Released("64.70", "41.4", "36.8"),
        ("mmdet",),
    ),
    PaperRow(
        2,
        "ResNet-101, GN",
        "GN",
        "table2/resnet101_gn",
        _printed("41.8", "62.5", "45.4", "36.8", "59.2", "39.0"),
        Released("64.71"),
        ("detectron",),
    ),
    PaperRow(
        2,
        "ResNet-101, AN (w/ BN)",
        "–",
        "table2/resnet101_an",
        _printed("43.5", "64.5", "47.4", "38.3", "60.9", "41.0"),
        Released("65.15", "43.1", "38.2"),
    ),
    PaperRow(
        2,
        "ResNet-101, AN (w/ BN)",
        "AN (w/ GN)",
        "table2/resnet101_an_an_head",
        _printed("43.7", "64.7", "48.1", "39.3", "61.6", "42.7"),
        Released("65.20", "43.2", "38.8"),
        ("head",),
    ),
    PaperRow(
        3,
        "Cascade Mask R-CNN, ResNet-101",
        "–",
        "table3/cascade_resnet101_bn",
        _printed("43.3", "37.6"),
        Released("96.32", "44.4", "38.2"),
        ("mmdet",),
    ),
    PaperRow(
        3,
        "Cascade Mask R-CNN, ResNet-101 + AN",
        "–",
        "table3/cascade_resnet101_an",
        _printed("46.4", "65.0", "50.4", "39.9", "62.3", "43.2"),
        Released("96.77", "45.8", "39.6"),
    ),
    PaperRow(
        3,
        "HTC, ResNet-101",
        "–",
        "table3/htc_resnet101_bn",
        _printed("44.9", "39.4"),
        None,
        ("mmdet", "htc"),
    ),
    PaperRow(
        3,
        "HTC, ResNet-101 + AN",
        "–",
        "table3/htc_resnet101_an",
        _printed("46.9", "66.4", "51.0", "40.9", "63.6", "44.2"),
        None,
        ("htc",),
    ),
    PaperRow(
        4,
        "MobileNet-v2",
        "–",
        "table4/mobilenetv2_bn",
        _printed("34.2", "54.6", "37.1", "30.9", "51.1", "32.6"),
        None,
        ("mobilenet",),
    ),
    PaperRow(
        4,
        "MobileNet-v2 + AN",
        "–",
        "table4/mobilenetv2_an",
        _printed("36.0", "57.0", "38.9", "32.5", "53.8", "34.5"),
        None,
        ("mobilenet",),
    ),
)


def rows_of(table: int) -> tuple[PaperRow, ...]:
    return tuple(row for row in ROWS if row.table == table)


def notes_of(table: int) -> dict[str, str]:
    """The footnotes of one table."""
    used = {note for row in rows_of(table) for note in row.notes}
    return {key: text for key, text in NOTES.items() if key in used or key in GENERAL}
