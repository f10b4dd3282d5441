"What the package imports: all of it is declared, and heavy libraries wait until they are needed."
import ast, configparser, json, re, subprocess, sys
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT/"prdp_nb").glob("*.py"))
HEAVY = {"accelerate", "diffusers", "matplotlib", "open_clip", "pandas", "peft", "torchvision", "transformers"}
DISTRIBUTIONS = {"PIL": "pillow", "open_clip": "open_clip_torch", "yaml": "pyyaml"} # where the distribution's name is not the import's

def canonical(name: str) -> str: return re.sub(r"[-_.]+", "-", name).lower()

def requirements() -> list[Requirement]: # of the installed package
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT/"settings.ini", encoding="utf-8")
    return [Requirement(text) for text in settings["DEFAULT"]["requirements"].split()]

def imported(module: Path) -> set[str]: # top-level names, wherever in the module they are imported
    nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    return ({alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            | {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level})

@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_every_import_is_declared(module):
    allowed = {canonical(requirement.name) for requirement in requirements()} | {"pyarrow", "bitsandbytes", "tokenizers"} # the first only for .parquet files, the second for adamw_8bit, by a clear error; the third comes with transformers
    for name in imported(module) - sys.stdlib_module_names - {"prdp_nb"}:
        assert canonical(DISTRIBUTIONS.get(name, name)) in allowed, f"{module.name} imports {name}, which is not in settings.ini's requirements"

def test_the_oldest_releases_are_those_that_make_oldest_tests():
    pinned = dict(line.split("==") for line in (ROOT/"constraints-oldest.txt").read_text().splitlines() if "==" in line)
    for requirement in requirements():
        for bound in requirement.specifier:
            assert bound.operator == ">=" and Version(bound.version) == Version(pinned[requirement.name]), f"{requirement} of settings.ini, {requirement.name}=={pinned.get(requirement.name)} in constraints-oldest.txt"

@pytest.mark.parametrize("module", ["objectives", "rewards", "prompts", "clip_rewards"])
def test_light_modules_import_nothing_heavy(module):
    code = f"import json, sys, prdp_nb.{module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


sys.path.insert(0, str(ROOT/"tools"))
import house

ROOMS = [path.stem for path in MODULES if not path.name.startswith("_")]

@pytest.mark.parametrize("module", ROOMS)
def test_a_module_imports_only_from_earlier_notebooks(module):
    "Wherever in the module it does so: no arrow points upward, and so there is no circle."
    chapters = house.chapters()
    for name in house.imports(module):
        assert chapters[name] < chapters[module], f"{module} ({chapters[module]}) imports {name} ({chapters[name]})"

def test_the_map_of_the_house_is_current():
    done = subprocess.run([sys.executable, ROOT/"tools/house.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def test_the_map_shows_each_room_once_and_no_arrow_that_others_imply():
    rooms = [line.split()[1] for line in house.draw().splitlines() if line.startswith("  ")]
    assert sorted(rooms) == sorted(ROOMS)
    graph = dict(a=set(), b={"a"}, c={"a", "b"})
    assert house.needed("c", graph) == {"b"} and house.reach("c", graph) == {"a", "b"}

def defined(cells: list[str]) -> set[str]: # names of functions and classes at the top of the cells
    trees = [ast.parse(cell) for cell in cells if not re.search(r"^[%!]|^ +[%!]", cell, re.M)]
    return {node.name for tree in trees for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}

@pytest.mark.parametrize("notebook", sorted((ROOT/"nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_cell_takes_the_name_of_what_its_notebook_exports(notebook):
    "Else the notebook's own later cells call another function than the module does."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    exported = [cell for cell in code if cell.startswith("#| export")]
    assert not defined(exported) & defined([cell for cell in code if cell not in exported])
