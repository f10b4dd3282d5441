"Every page of runs also trains: in its smoke setting, from its first epoch to its last picture, each in a process of its own."
from pathlib import Path
import pytest
from forked import run_notebook

ROOT = Path(__file__).resolve().parents[1]

@pytest.mark.parametrize("notebook", sorted((ROOT/"nbs").glob("3*.ipynb")), ids=lambda path: path.stem)
def test_smoke_setting_trains(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT) # whose settings.ini nbdev_test reads
    before = {path: path.stat().st_mtime_ns for path in (ROOT/"nbs").rglob("*") if ".ipynb_checkpoints" not in path.parts}
    run_notebook(notebook, "smoke", tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (ROOT/"nbs").rglob("*") if ".ipynb_checkpoints" not in path.parts}, "a smoke run must leave the results alone"
