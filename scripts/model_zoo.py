"""Write ``MODEL_ZOO.md``: every experiment's command, what to expect, and what was trained here.

    python scripts/model_zoo.py            write it
    python scripts/model_zoo.py --check    exit with 1 if it is not what the configs say

The rows are the heads of ``configs/experiment/``. A trained model is a folder ``zoo/NAME/``
with the ``result.json`` of its run, and ``model.json``: where its weights are, and their SHA-256.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "MODEL_ZOO.md"
SECTIONS = {
    "table1": "Table 1: ImageNet",
    "table2": "Table 2: Mask R-CNN on COCO",
    "table3": "Table 3: Cascade Mask R-CNN and Hybrid Task Cascade on COCO",
    "table4": "Table 4: Mask R-CNN with MobileNet-v2 on COCO",
    "ablation": "Ablations of the authors: where AN sits, and of what it is made",
}
_FIGURES = re.compile(r"^(Paper|Authors' release): |top-1|% .*errors")


@dataclass(frozen=True)
class Experiment:
    """The head of one file."""

    name: str
    about: str
    figures: str
    command: str

    @classmethod
    def read(cls, path: Path) -> Experiment:
        text = path.read_text()
        head = [line.lstrip("# ").rstrip() for line in text.splitlines() if line.startswith("#")]
        lines = [line for line in head if line != "@package _global_"]
        start = next(n for n, line in enumerate(lines) if "torchrun" in line)
        command = " ".join(line.rstrip("\\ ") for line in lines[start:])
        command = command[command.index("torchrun") :]
        figures = [line.rstrip(".") for line in lines[1:start] if _FIGURES.search(line)]
        name = str(path.relative_to(ROOT / "configs" / "experiment").with_suffix(""))
        return cls(name, lines[0].rstrip("."), "; ".join(figures) or "none printed", command)

    @property
    def ours(self) -> str:
        """What was trained, or that nothing was."""
        folder = ROOT / "zoo" / self.name
        if not (folder / "result.json").exists():
            return "not trained yet"
        result = json.loads((folder / "result.json").read_text())
        model = json.loads((folder / "model.json").read_text())
        final = ", ".join(f"{key} {value}" for key, value in result["final"].items())
        hours = result["wall_seconds"] / 3600
        return f"{final}; seed {result['seed']}, {hours:.1f} h; {model['url']} {model['sha256']}"


def zoo() -> str:
    """The whole page."""
    parts = [
        "# Model zoo",
        "",
        "Made by `python scripts/model_zoo.py` from the heads of `configs/experiment/`. Expected"
        " figures are the paper's or its authors'; what was trained here says so, with every seed"
        " and its checksum. Send yours: [contributing](CONTRIBUTING.md#results).",
    ]
    for folder, title in SECTIONS.items():
        paths = sorted((ROOT / "configs" / "experiment" / folder).glob("*.yaml"))
        parts += ["", f"## {title}", "", "| config | what | expected | here |", "|---|---|---|---|"]
        experiments = [Experiment.read(path) for path in paths]
        for row in experiments:
            link = f"[`{row.name}`](configs/experiment/{row.name}.yaml)"
            parts.append(f"| {link} | {row.about} | {row.figures} | {row.ours} |")
        parts += ["", "```sh", *(row.command for row in experiments), "```"]
    return "\n".join(parts) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        current = OUTPUT.read_text() if OUTPUT.exists() else ""
        if current != zoo():
            print("MODEL_ZOO.md is not what the configs say: run python scripts/model_zoo.py")
            return 1
        return 0
    OUTPUT.write_text(zoo())
    print(f"wrote {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
