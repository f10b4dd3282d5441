"Every notebook runs from top to bottom, each in a process of its own; `pytest --durations=0` prints the times."
import json, re, subprocess
from pathlib import Path
import pytest
from forked import run_notebook

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "index"]

@pytest.fixture(autouse=True)
def from_the_root(monkeypatch): monkeypatch.chdir(ROOT) # whose settings.ini nbdev_test reads

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook, tmp_path):
    run_notebook(notebook, "full", tmp_path) # pages of runs find all of them in nbs/results, with the settings they ask for, and train nothing

def notebook_of(path: Path, *cells: str) -> Path:
    given = [dict(cell_type="code", source=source, metadata={}, outputs=[], execution_count=None) for source in cells]
    path.write_text(json.dumps(dict(cells=given, metadata=dict(kernelspec=dict(name="python3", language="python")), nbformat=4, nbformat_minor=5)))
    return path

CLEAN = """import os, sys, torch
assert torch.get_default_dtype() == torch.float32 and torch.initial_seed() != 7 and "LEFT" not in os.environ and not hasattr(os, "left")
assert os.getcwd() == os.path.realpath("FOLDER") and os.environ["PRDP_RUNS"] == "smoke" and not [name for name in sys.modules if name.startswith("prdp_nb")]"""
MESS = """os.left, os.environ["LEFT"] = True, "yes"
os.chdir("/"); torch.set_default_dtype(torch.float64); torch.manual_seed(7)
import prdp_nb.schedules"""

@pytest.mark.parametrize("last, said", [
    ("1/0", "ZeroDivisionError in .*broken.ipynb:(.|\\n)*While Executing Cell #3:(.|\\n)*division by zero"),
    ("assert False, 'not so'", "AssertionError: not so"), ("sys.exit(0)", "SystemExit"), ("os._exit(0)", None), ("os._exit(3)", None)])
def test_a_notebook_that_fails_says_where_and_leaves_nothing_behind(last, said, tmp_path):
    clean = CLEAN.replace("FOLDER", str(tmp_path))
    with pytest.raises(AssertionError, match=said): run_notebook(notebook_of(tmp_path/"broken.ipynb", clean, MESS, last), "smoke", tmp_path)
    run_notebook(notebook_of(tmp_path/"whole.ipynb", clean, MESS), "smoke", tmp_path)

def test_a_notebook_that_hangs_is_ended(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired): run_notebook(notebook_of(tmp_path/"hangs.ipynb", "import time; time.sleep(60)"), "smoke", tmp_path, timeout=2)

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small(notebook):
    assert notebook.stat().st_size < 1_000_000
    assert "widgets" not in json.loads(notebook.read_text(encoding="utf-8"))["metadata"], "states of widgets, hundreds of lines that no reader sees: leave them out"

def silent_cells(cells: list[dict]) -> list[int]: # numbers of those that print or show, and have no output
    if "skip_exec: true" in "".join(cells[0]["source"]): return []
    sources = ["".join(cell["source"]) for cell in cells]
    return [i for i, (cell, source) in enumerate(zip(cells, sources)) if cell["cell_type"] == "code" and "#| eval: false" not in source
            and re.search(r"^(print|display|plt\.show)\(", source, flags=re.M) and not cell["outputs"]]

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_has_the_outputs_that_its_prose_speaks_of(notebook):
    assert not silent_cells(json.loads(notebook.read_text(encoding="utf-8"))["cells"]), "execute the notebook before it is committed"

def markdown(notebook: Path) -> list[str]: # its cells of prose
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]

@pytest.mark.parametrize("notebook, after", list(zip(CHAPTERS, [*CHAPTERS[1:], ROOT/"nbs/index.ipynb"])), ids=lambda path: path.stem)
def test_chapter_opens_and_ends_like_one(notebook, after):
    title, opening, *rest = markdown(notebook)
    badge = rf"\[!\[Open In Colab\]\(\S+\)\]\(https://colab.research.google.com/github/prdp-nb/prdp_nb/blob/main/nbs/{notebook.name}\)"
    assert re.fullmatch(r"# .+\n\n> .+", title), "a chapter begins with its title and a line on what it is about"
    assert re.match(rf"{badge}\n\n\*\*What you will learn\.\*\* ", opening)
    for part in (r"\*\*(What is e|E)xported\.\*\*", r"\*\*(How long it (runs|takes)|Time)\.\*\*"): assert re.search(part, opening), part
    ending = "\n\n".join(rest).partition("## What was learnt\n")[2]
    assert re.search(r"\*\*(Exercises|More to try)\.\*\* (\(1\)|1\.) ", ending), "no exercises after what was learnt"
    assert f"]({after.name})" in ending.strip().split("\n\n")[-1], "the last paragraph does not lead to the next chapter"
