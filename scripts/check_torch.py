"""Stop before pip fills a machine without a GPU with a GPU's packages (several GB). Run by the
Makefile before torch is installed."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

TORCH = "torch==2.13.0"
ADVICE = f"""
pip would install {{n}} nvidia-* packages for {TORCH}, but this machine shows no NVIDIA GPU.
Install PyTorch's CPU build into .venv first: open PyTorch's own install page (pytorch.org,
"Get Started"), choose pip, Python and Compute Platform CPU, and run the command it shows with
.venv/bin/python -m pip. Then run make again.
To take the GPU packages all the same: .venv/bin/python -m pip install {TORCH}
"""


def main() -> None:
    if find_spec("torch") is not None or shutil.which("nvidia-smi"):
        return
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", TORCH],
        capture_output=True,
        text=True,
    )
    if asked.returncode:
        sys.exit(asked.stderr)
    names = [item["metadata"]["name"] for item in json.loads(asked.stdout)["install"]]
    gpu = [n for n in names if n.lower().startswith("nvidia-")]
    if gpu:
        sys.exit(ADVICE.format(n=len(gpu)))


if __name__ == "__main__":
    main()
