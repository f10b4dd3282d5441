"""The map of the house: which room imports from which, drawn from the imports, into CONTRIBUTING.md.

    python tools/house.py           write it
    python tools/house.py --check   end with an error where it is not current
"""
import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT/"CONTRIBUTING.md"
BEGIN, END = "<!-- the map of the house, by tools/house.py -->", "<!-- end of the map -->"
PARTS = {"0": "I the method", "1": "II the parts", "2": "III the program", "3": "IV results",
         "5": "V scale", "9": "appendix"}


def chapters() -> dict[str, str]: # module -> number of its notebook
    found = {}
    for notebook in sorted((ROOT/"nbs").glob("[0-9]*.ipynb")):
        names = re.findall(r'"#\| default_exp (\w+)', notebook.read_text(encoding="utf-8"))
        for name in names: found[name] = notebook.stem[:2]
    return found


def imports(module: str) -> set[str]: # names of rooms, wherever in the module they are imported
    tree = ast.parse((ROOT/f"prdp_nb/{module}.py").read_text(encoding="utf-8"))
    named = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    found = {node.module if node.level else node.module.partition("prdp_nb.")[2] for node in named}
    return found - {""}


def reach(module: str, graph: dict[str, set[str]]) -> set[str]: # directly or through others
    return graph[module].union(*(reach(name, graph) for name in graph[module]))


def needed(module: str, graph: dict[str, set[str]]) -> set[str]: # what no other import implies
    return {name for name in graph[module]
            if not any(name in reach(other, graph) for other in graph[module] - {name})}


def draw() -> str: # Markdown
    numbers = chapters()
    graph = {module: imports(module) for module in numbers}
    lines, part = [], None
    for module, number in sorted(numbers.items(), key=lambda item: item[1]):
        of_number = "1" if number == "09" else number[0]
        if of_number != part:
            part = of_number
            lines += ["", PARTS[part]]
        above = sorted(needed(module, graph), key=lambda name: numbers[name])
        below = ", ".join(f"{numbers[name]} {name}" for name in above)
        lines.append(f"  {number} {module:15} {'← ' + below if below else ''}".rstrip())
    return "\n".join([BEGIN, "", "```text", *lines[1:], "```", "", END])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    current = before + draw() + rest.partition(END)[2]
    if text == current: print("The map of the house is current.")
    elif options.check: sys.exit("the map in CONTRIBUTING.md is not current: python tools/house.py")
    else: PAGE.write_text(current, encoding="utf-8")


if __name__ == "__main__": main()
