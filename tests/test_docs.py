"The website up to what Quarto does: nbdev's own step, which runs each chapter's imports and exported cells and writes the API pages."
import json, os, shutil, subprocess, sys
from pathlib import Path
import pytest, yaml

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted(path.name for path in (ROOT/"nbs").glob("[0-9]*.ipynb"))

@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    "The folder that Quarto would render."
    folder = tmp_path_factory.mktemp("docs")
    for name in ("nbs", "prdp_nb"): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns("results", "runs", "__pycache__", ".ipynb_checkpoints"))
    shutil.copy(ROOT/"settings.ini", folder)
    quarto = folder/"bin/quarto" # nbdev wants one on the PATH, and does not call it in this step
    quarto.parent.mkdir()
    quarto.write_text("#!/bin/sh\nexit 1\n")
    quarto.chmod(0o755)
    path = os.pathsep.join([str(quarto.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["nbdev_proc_nbs", "--n_workers", "1"], cwd=folder, env=os.environ | dict(PATH=path, PYTHONPATH=str(folder)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder/"_proc"

def test_every_chapter_becomes_a_page(pages):
    assert sorted(path.name for path in pages.glob("*.ipynb")) == [*CHAPTERS, "index.ipynb"]
    for name in CHAPTERS: assert "**What you will learn.**" in (pages/name).read_text(), name

def test_api_pages_have_the_docments(pages):
    cells = {"".join(cell["source"]): "".join(out for output in cell.get("outputs", ()) for out in output.get("data", {}).get("text/markdown", ())) for cell in json.loads((pages/"05_objectives.ipynb").read_text())["cells"]}
    assert "clip_range:float, # ε" in next(shown for source, shown in cells.items() if source.endswith("show_doc(prdp_loss)"))
    assert any("\ndef prdp_loss(" in source for source in cells) # the derivation's own chapters also show the code

def test_sidebar_has_every_chapter_in_order():
    first, *sections = yaml.safe_load((ROOT/"nbs/sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    assert first == "index.ipynb" and [name for section in sections for name in section["contents"]] == CHAPTERS
