"""The first code cell of every chapter, which installs the package on Colab: one text, with the version of settings.ini.

    python tools/install_cell.py           write it into all chapters
    python tools/install_cell.py --check   end with an error where a chapter has another
"""
import argparse
import configparser
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CELL = '''#| hide
import importlib.util, subprocess, sys
from importlib.metadata import version
if importlib.util.find_spec("prdp_nb") is None: # on Colab, which keeps the torch that it came with
    parts = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name)]
    pip = [sys.executable, "-m", "pip", "install", "-q"] + [f"{n}=={version(n)}" for n in parts]
    pip += "fastcore ipywidgets pyarrow scipy".split() # of the notebooks alone
    if subprocess.run([*pip, "prdp_nb=={version}"], stderr=subprocess.DEVNULL).returncode:
        print("The index has no prdp_nb {version} that fits: installing the main branch.")
        subprocess.run([*pip, "prdp_nb @ git+https://github.com/prdp-nb/prdp_nb"], check=True)'''


def released() -> str: # the version of settings.ini
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["version"]


def install_cell() -> str: return CELL.replace("{version}", released(), 2)


def chapters() -> list[Path]: return sorted((ROOT/"nbs").glob("[0-9]*.ipynb"))


def first_code(notebook: dict) -> dict: # its first cell of code
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check, others = parser.parse_args().check, []
    for path in chapters():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cell = first_code(notebook)
        if "".join(cell["source"]) == install_cell(): continue
        others.append(path.name)
        cell["source"] = install_cell().splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if not check: path.write_text(text, encoding="utf-8")
    if check and others: sys.exit(f"another first cell: {', '.join(others)}: python tools/install_cell.py")
    print(f"{len(others)} chapters written." if others else "All chapters install alike.")


if __name__ == "__main__": main()
