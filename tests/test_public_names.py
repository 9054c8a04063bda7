import subprocess
import sys

import tunesmith


def test_every_public_name_is_there() -> None:
    assert all(getattr(tunesmith, name) is not None for name in tunesmith.__all__)


def test_importing_tunesmith_and_its_doors_imports_no_torch() -> None:
    code = "import sys, tunesmith; tunesmith.Tunesmith; tunesmith.connect; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "[]"
    )
