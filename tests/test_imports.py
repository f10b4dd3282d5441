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


def chapter_of() -> dict[str, str]: # module -> number of the notebook that exports it
    found = {}
    for notebook in sorted((ROOT/"nbs").glob("[0-9]*.ipynb")):
        for name in re.findall(r"#\| default_exp (\w+)", notebook.read_text(encoding="utf-8")): found[name] = notebook.stem[:2]
    return found

@pytest.mark.parametrize("module", [path for path in MODULES if not path.name.startswith("_")], ids=lambda path: path.stem)
def test_a_module_imports_only_from_earlier_notebooks(module):
    chapters = chapter_of()
    for name in re.findall(r"^from \.(\w+) import", module.read_text(encoding="utf-8"), flags=re.M):
        assert chapters[name] < chapters[module.stem], f"{module.stem} ({chapters[module.stem]}) imports {name} ({chapters[name]})"
