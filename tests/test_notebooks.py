"Every notebook runs from top to bottom, each in a process of its own; `pytest --durations=0` prints the times."
import subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
NBDEV_TEST = Path(sys.executable).with_name("nbdev_test")

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook):
    done = subprocess.run([NBDEV_TEST, "--path", notebook, "--n_workers", "0"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Success." in done.stdout, done.stdout[-2000:] + done.stderr[-8000:]

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small(notebook): assert notebook.stat().st_size < 1_000_000
