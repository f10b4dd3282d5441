"""The website: the chapters without hidden cells and directives, and the pages of the API, made by
Sphinx into FOLDER/html. Needs no network."""
import argparse, re, shutil, sys
from functools import cache
from pathlib import Path
import nbformat
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import main as sphinx
import api, readme

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT/"nbs").glob("*.ipynb"))}
MODULES = [api.Source(path) for path in (ROOT/"prdp_nb").glob("[a-z]*.py")]
WIDGET = "application/vnd.jupyter.widget-view+json" # a control: dead without Python behind it

def read(name: str) -> nbformat.NotebookNode: return nbformat.read(NOTEBOOKS[name], as_version=4)

@cache
def title(name: str) -> str: # of a chapter, with its number
    first = next(cell for cell in read(name).cells if cell.cell_type == "markdown")
    return f"{name[:2]} {first.source.splitlines()[0].removeprefix('# ')}"

def alternative(cell, after: list) -> str: # the cells after it
    """An image in words: `#| alt: ...` in its cell, or else the caption under it, which is the
    paragraph in italics."""
    given = re.search(r"^#\| alt: (.+)", cell.source, flags=re.M)
    caption = re.match(r"\*(?!\*)(.+?)\*(?!\*)", after[0].source if after else "", flags=re.S)
    found = given or caption
    return " ".join(re.sub(r"[`*$]|\]\(\S*?\)|\[", "", found[1]).split()) if found else ""

def chapter(name: str) -> nbformat.NotebookNode: # as Sphinx reads it
    notebook = read(name)
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.metadata["mystnb"] = dict(image=dict(alt=alternative(cell, notebook.cells[i + 1:])))
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
        else: # no badge from elsewhere; anchors as Sphinx writes them
            cell.source = re.sub(r"\[!\[Open In Colab\]\(\S+?\)\]", "[Open in Colab]", cell.source)
            cell.source = re.sub(r"(?<=\]\()([\w.]*#\S+?)(?=\))", lambda m: m[1].lower(), cell.source)
    notebook = readme.shown(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook

def contents(caption: str, entries: list[str]) -> str: # a part of the book, for the sidebar
    head = ["```{toctree}", ":hidden:", f":caption: {caption}"]
    return "\n".join([*head, "", *entries, "```"])

def front() -> nbformat.NotebookNode:
    "The front page, with the parts of the book in the order of its map."
    page = chapter("index")
    parts = [["The book"]]
    for cell in page.cells:
        if "\n### " not in cell.source: continue
        book = "### " + cell.source.split("\n### ", 1)[1].split("\n## ")[0]
        for heading, name in re.findall(r"^### (.+)$|\[\w+\]\((\w+)\.ipynb\)", book, flags=re.M):
            if heading: parts.append([heading])
            else: parts[-1].append(f"{title(name)} <{name}>")
    parts.append(["Reference", "api/index"])
    lists = [contents(caption, entries) for caption, *entries in parts if entries]
    page.cells.append(new_markdown_cell("\n\n".join(lists)))
    return page

def write(folder: Path) -> None: # all that Sphinx reads
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT/"nbs/images", folder/"images")
    for name in NOTEBOOKS:
        nbformat.write(front() if name == "index" else chapter(name), folder/f"{name}.ipynb")
    (folder/"api").mkdir()
    rows, names = ["| module | what it holds |", "|---|---|"], []
    for module in sorted(MODULES, key=lambda module: module.chapter):
        names.append(module.path.stem)
        rows.append(f"| [`{module.name}`]({names[-1]}.md) | {module.summary} |")
        page = module.page(title(module.chapter))
        (folder/f"api/{names[-1]}.md").write_text(page, encoding="utf-8")
    page = "\n".join(["# API", "", *rows, "", contents("Modules", names)])
    (folder/"api/index.md").write_text(page, encoding="utf-8")

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT/"_docs", help="where it goes")
    folder = parser.parse_args().folder
    write(folder/"source")
    shutil.rmtree(folder/"html", ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(ROOT/"docs"), "-d", str(folder/"doctrees")]
    sys.exit(sphinx([*options, str(folder/"source"), str(folder/"html")]))

if __name__ == "__main__": main()
