"""Every example runs and prints what is committed beside it (`01_headline.txt` for `01_headline.py`)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_its_committed_output(example: Path, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, example], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.replace(f"{ROOT}/", "") == example.with_suffix(".txt").read_text()
