"Rooms one can live in: the measures that every module and notebook is held to."
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import measures


def test_every_room_keeps_its_measures():
    done = subprocess.run([sys.executable, ROOT/"tools/measures.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("found, said", [
    (dict(cells=61), "cells 61 > 60"), (dict(columns=101), "columns 101 > 100"), (dict(exported=41), "exported 41 > 40"),
    (dict(median=12.5), "median 12.5 > 12"), (dict(lines=401), "lines 401 > 400")])
def test_what_is_over_a_measure_is_named(found, said):
    assert measures.too_much(found) == [said]
    assert not measures.too_much({name: int(value) - 1 for name, value in found.items()})


def test_every_room_is_measured():
    notebooks, modules = measures.rooms()
    assert {"00_derivation", "24_training", "92_emoji_scorers", "index"} <= {notebook.stem for notebook in notebooks}
    assert {module.stem for module in modules} >= {"schedules", "training", "experiments"}
