"Every notebook runs from top to bottom, each in a process of its own; `pytest --durations=0` prints the times."
import json, os, re, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem != "index"]
NBDEV_TEST = Path(sys.executable).with_name("nbdev_test")

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook):
    kept = os.environ | dict(PRDP_RUNS="full") # pages of runs find all of them in nbs/results, with the settings they ask for, and train nothing
    done = subprocess.run([NBDEV_TEST, "--path", notebook, "--n_workers", "0"], cwd=ROOT, capture_output=True, text=True, timeout=600, env=kept)
    assert done.returncode == 0 and "Success." in done.stdout, done.stdout[-2000:] + done.stderr[-8000:]

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small(notebook):
    assert notebook.stat().st_size < 1_000_000
    assert "widgets" not in json.loads(notebook.read_text(encoding="utf-8"))["metadata"], "states of widgets, hundreds of lines that no reader sees: leave them out"

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

@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_installs_what_it_needs_on_colab(notebook):
    import prdp_nb
    code = ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert ["%pip" in source for source in code] == [True] + [False]*(len(code) - 1), "the first cell installs, and no other"
    assert re.search(rf'^    %pip install -q "prdp_nb=={re.escape(prdp_nb.__version__)}" [a-z ]*\{{" ".join\(here\)\}}$', code[0], flags=re.M) and '("torch", "torchvision")' in code[0]
