"Every page of runs also trains: in its smoke setting, from its first epoch to its last picture, each in a process of its own."
import os, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBDEV_TEST = Path(sys.executable).with_name("nbdev_test")

@pytest.mark.parametrize("notebook", sorted((ROOT/"nbs").glob("3*.ipynb")), ids=lambda path: path.stem)
def test_smoke_setting_trains(notebook):
    before = {path: path.stat().st_mtime_ns for path in (ROOT/"nbs").rglob("*") if ".ipynb_checkpoints" not in path.parts}
    done = subprocess.run([NBDEV_TEST, "--path", notebook, "--n_workers", "0"], cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | dict(PRDP_RUNS="smoke"))
    assert done.returncode == 0 and "Success." in done.stdout, done.stdout[-2000:] + done.stderr[-8000:]
    assert before == {path: path.stat().st_mtime_ns for path in (ROOT/"nbs").rglob("*") if ".ipynb_checkpoints" not in path.parts}, "a smoke run must leave the results alone"
