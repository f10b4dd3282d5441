"The measures of the book: lines of a module, of an exported cell, cells of a notebook, columns, words, also of a sentence; what is over its limit ends with an error."
import argparse, json, re, statistics, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE_LINES, COLUMNS, CELLS, EXPORTED_LINES, EXPORTED_MEDIAN = 400, 100, 60, 40, 12
PART_ONE_WORDS = 22_000 # 00 to 08 together, in prose
SENTENCE = 40 # words
NO_PROSE = r"^```.*?^```|^(?: {4}|\t).*?$|\$\$.*?\$\$|^\s*\|[-:| ]+\|$|^\s*(?:[-*>]|#+|\d+\.)\s" # code, display formulas, rules of a table, signs of items and titles
ENDS = r"(?<!\beq)(?<!\beqs)(?<!e\.g)(?<!i\.e)(?<!\bal)(?<!\bvs)[.!?][\"')\]*”]*\s+|\n\s*\n|\|" # of a sentence, a paragraph, a cell of a table

def cells_of(notebook: Path, kind: str) -> list[str]: # "code" or "markdown"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]

def sentences(text: str) -> list[str]: # of Markdown; a formula or a piece of code in a line is one word
    text = re.sub(NO_PROSE, "\n\n", text, flags=re.S | re.M)
    text = re.sub(r"`[^`]+`|\$[^$]+\$", "code", text)
    text = re.sub(r"(?<=\])\([^)\s]+\)|</?[a-z][^>]*>", "", text) # targets of links, tags
    return [" ".join(part.split()) for part in re.split(ENDS, text) if part.split()]

def longest_sentence(prose: list[str]) -> str: # of cells of Markdown
    return max((found for cell in prose for found in sentences(cell)), key=lambda found: len(found.split()), default="")

def measure_notebook(notebook: Path) -> dict: # the numbers of one notebook
    code, prose = cells_of(notebook, "code"), cells_of(notebook, "markdown")
    exported = [len(cell.splitlines()) for cell in code if re.match(r"\s*#\|\s*exports?\b", cell)]
    lines = [line for cell in code for line in cell.splitlines()]
    return dict(name=notebook.stem, cells=len(code) + len(prose), columns=max(map(len, lines), default=0),
                exported=max(exported, default=0), median=statistics.median(exported or [0]),
                words=sum(len(cell.split()) for cell in prose), longest=longest_sentence(prose), sentence=len(longest_sentence(prose).split()))

def measure_module(module: Path) -> dict: # the numbers of one module
    text = module.read_text(encoding="utf-8")
    ours = re.sub(r"^__all__ = \[.*?\]$", "", text, flags=re.S | re.M).splitlines() # nbdev writes that list itself, in 120 columns
    return dict(name=module.stem, lines=len(text.splitlines()), columns=max(map(len, ours), default=0))

def too_much(found: dict) -> list[str]: # which limits it is over
    limits = dict(sentence=SENTENCE, cells=CELLS, columns=COLUMNS, exported=EXPORTED_LINES, median=EXPORTED_MEDIAN, lines=MODULE_LINES)
    return [f"{name} {found[name]} > {limit}" for name, limit in limits.items() if found.get(name, 0) > limit]

def rooms() -> tuple[list[Path], list[Path]]: # all notebooks and modules: they are held to the limits
    modules = [path for path in sorted((ROOT/"prdp_nb").glob("*.py")) if not path.name.startswith("_")]
    return sorted((ROOT/"nbs").glob("*.ipynb")), modules

def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    notebooks, modules = rooms()
    books, houses = list(map(measure_notebook, notebooks)), list(map(measure_module, modules))
    print(f"{'notebook':24}{'cells':>6}{'words':>7}{'sentence':>10}{'columns':>9}{'longest exported':>18}{'median':>8}")
    for b in books: print(f"{b['name']:24}{b['cells']:6}{b['words']:7}{b['sentence']:10}{b['columns']:9}{b['exported']:18}{b['median']:8g}  {', '.join(too_much(b))}")
    for b in books:
        if b["sentence"] > SENTENCE: print(f"\n{b['name']}: {b['longest']}")
    longest = max(books, key=lambda b: b["sentence"])
    print(f"\nlongest sentence, of {longest['sentence']} words, in {longest['name']}: {longest['longest']}")
    print(f"\n{'module':18}{'lines':>6}{'columns':>9}")
    for h in houses: print(f"{h['name']:18}{h['lines']:6}{h['columns']:9}  {', '.join(too_much(h))}")
    words = sum(b["words"] for b in books if b["name"].startswith("0"))
    print(f"\nwords of 00 to 08: {words:,}, at most {PART_ONE_WORDS:,}")
    if words > PART_ONE_WORDS or any(map(too_much, books + houses)): sys.exit("over the measures: see above")

if __name__ == "__main__": main()
