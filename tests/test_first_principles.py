"""Steps from first principles against published measurements: a few of each family, and that they get no worse."""

import math
import sys
from pathlib import Path
from statistics import mean

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import first_principles
from first_principles import FAMILIES, MEASURED, Family, errors

EVERY = {
    "B200, SimuMax": (4, 0.117),
    "vTrain, one node": (200, 0.446),
    "vTrain, 64 to 512 GPUs": (14, 0.186),
    "Megatron, SC21 table 1": (5, 0.265),
    "Megatron, recomputation paper, iterations": (1, 0.143),
    "Megatron, recomputation paper, one layer": (2, 0.135),
}
"""Each how many-th row is simulated, and the mean absolute error of their times when this was written."""
MEMORY = 0.0147
"""The same of the B200 cases' peak memory."""
WORSE = 1.5


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured data: {MEASURED} is not there")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.name))
def test_errors_are_no_worse_than_recorded(family: Family) -> None:
    every, recorded = EVERY[family.name]
    found, refused = errors(family, MEASURED, every)
    assert len(found) >= 2
    assert not refused
    assert all(math.isfinite(error.time) and error.seconds > 0 for error in found)
    assert mean(abs(error.time) for error in found) < WORSE * recorded
    memory = [error.memory for error in found if error.memory is not None]
    assert not memory or mean(map(abs, memory)) < WORSE * MEMORY


def test_without_measured_data_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(first_principles, "MEASURED", Path("nowhere"))
    first_principles.main()
    assert capsys.readouterr().out == "no measured data: nowhere is not there\n"
