"""benchmarks/plant_defects.py: what it changes is there, so that a line edited since is seen at once."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "plant_defects.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks/ is not here")


def test_every_planted_defect_finds_its_line_once_in_its_file():
    defects = runpy.run_path(str(SCRIPT))["DEFECTS"]
    counts = {d.name: (ROOT / d.file).read_text(encoding="utf-8").count(d.line) for d in defects}
    assert {name: count for name, count in counts.items() if count != 1} == {}
