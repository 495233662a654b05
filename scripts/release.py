"""Build sdist and wheel, check them, and train with each where nothing else is.

make release                                    with the Python of .venv
python scripts/release.py python3.12 python3.13     with these
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
EPOCH = ["arch=mobilenetv2", "epochs=1", "batch_size=64", "loader=torch", "data.workers=0"]


def main() -> int:
    shutil.rmtree(DIST, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    built = sorted(str(path) for path in DIST.iterdir())
    _run(sys.executable, "-m", "twine", "check", "--strict", *built)
    (wheel,) = DIST.glob("*.whl")
    (sdist,) = DIST.glob("*.tar.gz")
    for interpreter in sys.argv[1:] or [sys.executable]:
        for source in (wheel, sdist):
            _try(source, interpreter)
    print(f"built and tried: {', '.join(built)}")
    return 0


def _try(package: Path, interpreter: str) -> None:
    """Install it alone, and train, evaluate and list its commands in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="attnorm-release-") as name:
        folder = Path(name)
        _run(interpreter, "-m", "venv", str(folder / "env"))
        python, attnorm = (str(folder / "env" / "bin" / tool) for tool in ("python", "attnorm"))
        constraints = str(ROOT / "constraints.txt")
        quiet = ["--disable-pip-version-check", "--progress-bar", "off", "-q"]
        _run(python, "-m", "pip", "install", *quiet, "-c", constraints, f"{package}[train]")
        work = folder / "work"
        work.mkdir()
        _run(attnorm, "--version", cwd=work)
        _run(attnorm, "train", *EPOCH, "name=tried", cwd=work)
        _run(attnorm, "eval", "checkpoint=runs/tried/best.pt", "loader=torch", cwd=work)


def _run(*command: str, cwd: Path | None = None) -> None:
    print("$", *command, flush=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=cwd, env=environment)


if __name__ == "__main__":
    sys.exit(main())
