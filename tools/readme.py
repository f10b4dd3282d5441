"README.md is nbs/index.ipynb as Markdown, its links turned so that they work from the root of the repository."
import argparse, posixpath, re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK, README = ROOT/"nbs"/"index.ipynb", ROOT/"README.md"
HEADER = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
LINK = re.compile(r"""(\]\(|\b(?:src|href)=["'])([^)"'\s]+)""") # Markdown's ](target) and HTML's src="target"

def from_root(
    link: str, # as written in a notebook of nbs/
) -> str: # the same target, seen from the root
    if re.match(r"[a-z]+:|[#/]", link): return link
    return posixpath.normpath(posixpath.join("nbs", link))

def shown(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode: # the same
    "Leaves out hidden cells and nbdev's directives."
    notebook.cells = [cell for cell in notebook.cells if not re.match(r"#\|\s*hide\b", cell.source)]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    notebook.metadata.language_info = {"name": "python"} # names the language of the code blocks
    return notebook

def readme(notebook: nbformat.NotebookNode) -> str: # Markdown
    "What a reader is to see, relative links seen from the root."
    for cell in shown(notebook).cells:
        if cell.cell_type == "markdown": cell.source = LINK.sub(lambda m: m[1] + from_root(m[2]), cell.source)
    markdown, resources = MarkdownExporter().from_notebook_node(notebook)
    if resources["outputs"]: raise ValueError("index.ipynb holds pictures as outputs: save them in nbs/images and link them instead")
    return HEADER + re.sub(r"\n{3,}```", "\n\n```", markdown.strip()) + "\n"

def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether README.md is current")
    text = readme(nbformat.read(NOTEBOOK, as_version=4))
    if not parser.parse_args().check: README.write_text(text, encoding="utf-8")
    elif not README.exists() or README.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not what nbs/index.ipynb says: run 'make readme' and commit")
    else: print("README.md is current.")

if __name__ == "__main__": main()
