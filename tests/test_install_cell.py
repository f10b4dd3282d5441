"""The cell that installs on Colab: every chapter has the same, and it does what it says, asked of an
index and a repository on this machine that stand in for the real ones."""
import json, os, re, subprocess, sys, zipfile
from pathlib import Path
import pip
import prdp_nb
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import install_cell

NOTEBOOKS_NEED = ("fastcore", "ipywidgets", "pyarrow", "scipy")
BACKEND = '''
import shutil
def build_wheel(folder, settings=None, metadata=None):
    name = "prdp_nb-{version}-py3-none-any.whl"
    shutil.copy(name, folder)
    return name
'''

def write_wheel(folder: Path, name: str, version: str, *needs: str, said: str = "") -> Path:
    "A package of one line, which says where it came from."
    module, about = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    files = {f"{module}/__init__.py": f"said = {said!r}\n",
             f"{about}/METADATA": "\n".join(lines + [f"Requires-Dist: {n}" for n in needs]) + "\n",
             f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder/f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items(): archive.writestr(path, text)
    return wheel

def write_index(folder: Path):
    "The pages of a simple index, beside the wheels of each project."
    for project in folder.iterdir():
        links = [f'<a href="{wheel.name}">{wheel.name}</a>' for wheel in project.glob("*.whl")]
        (project/"index.html").write_text("<!DOCTYPE html>\n" + "\n".join(links))

class Colab:
    "An environment with a torch of its own, and what it can reach."
    def __init__(self, folder: Path, torch: str):
        self.index, self.repository = folder/"simple", folder/"main"/"prdp_nb"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder/"venv"], check=True)
        self.python = folder/"venv"/"bin"/"python"
        [self.site] = (folder/"venv"/"lib").glob("python*/site-packages")
        (self.site/"pip").symlink_to(Path(pip.__file__).parent)
        self.put(write_wheel(folder/"here", "torch", torch, said="Colab's"))
        for name in NOTEBOOKS_NEED: write_wheel(self.index/name, name, "1.0")
        for release, vision in (("2.8.0", "0.23.0"), ("2.9.0", "0.24.0")):
            write_wheel(self.index/"torch", "torch", release, said="the index's")
            write_wheel(self.index/"torchvision", "torchvision", vision, f"torch=={release}")
        self.write_main()

    def put(self, wheel: Path): zipfile.ZipFile(wheel).extractall(self.site)

    def release(self, version: str):
        needs = "torch>=2.8", "torchvision"
        write_wheel(self.index/"prdp-nb", "prdp_nb", version, *needs, said="the index's")

    def write_main(self):
        needs = "torch>=2.8", "torchvision"
        write_wheel(self.repository, "prdp_nb", "0.0.1", *needs, said="of the main branch")
        (self.repository/"backend.py").write_text(BACKEND.format(version="0.0.1"))
        (self.repository/"pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
        git = ["git", "-C", self.repository, "-c", "user.name=n", "-c", "user.email=e@e.invalid"]
        for words in ("init -q -b main", "add .", "commit -q -m main"):
            subprocess.run([*git, *words.split()], check=True)

    def run_cell(self) -> subprocess.CompletedProcess:
        write_index(self.index)
        stands_in = dict(
            PIP_INDEX_URL=self.index.as_uri(), PIP_CONFIG_FILE=os.devnull,
            PIP_DISABLE_PIP_VERSION_CHECK="1", GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0=f"url.{self.repository.parent.as_uri()}/.insteadOf",
            GIT_CONFIG_VALUE_0="https://github.com/prdp-nb/")
        aside = ("PIP_", "PYTHONPATH", "VIRTUAL_ENV", "GIT_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(aside)}
        return subprocess.run([self.python, "-c", install_cell.install_cell()], env=kept | stands_in,
                              cwd=self.site.parent, capture_output=True, text=True, timeout=120)

    def says(self, name: str) -> str: # where a package came from
        asked = f"import {name}; print({name}.said)"
        done = subprocess.run([self.python, "-c", asked], cwd=self.site.parent, capture_output=True,
                              text=True, env={"PATH": os.environ["PATH"]})
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    def version(self, name: str) -> str:
        [about] = self.site.glob(f"{name}-*.dist-info")
        return about.name.removeprefix(f"{name}-").removesuffix(".dist-info")

@pytest.fixture
def colab(tmp_path): return Colab(tmp_path, "2.8.0+cu126")

def torch_is_untouched(colab: Colab) -> bool:
    return colab.says("torch") == "Colab's" and colab.version("torch") == "2.8.0+cu126"

def test_every_chapter_has_the_same_cell():
    done = subprocess.run([sys.executable, ROOT/"tools/install_cell.py", "--check"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'"prdp_nb=={prdp_nb.__version__}"' in install_cell.install_cell()
    for path in install_cell.chapters(): # and no other cell calls pip
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert not [source for source in code[1:] if re.search(r"%pip|^[!]pip", source)], path.name

def test_the_release_of_the_index_is_installed(colab):
    for version in (install_cell.released(), "99.0"): colab.release(version)
    done = colab.run_cell()
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
    assert colab.says("prdp_nb") == "the index's"
    assert colab.version("prdp_nb") == install_cell.released(), "the newest is another's"
    assert torch_is_untouched(colab) and colab.version("torchvision") == "0.23.0"
    for name in NOTEBOOKS_NEED: assert colab.version(name) == "1.0"

def test_without_that_release_the_main_branch_is_installed(colab):
    colab.release("0.0.9")
    done = colab.run_cell()
    assert done.returncode == 0, done.stderr
    assert "installing the main branch" in done.stdout and "ERROR" not in done.stderr
    assert colab.says("prdp_nb") == "of the main branch"
    assert torch_is_untouched(colab) and colab.version("torchvision") == "0.23.0"

def test_a_torch_that_does_not_fit_is_said_and_kept(tmp_path):
    colab = Colab(tmp_path, "2.7.0")
    colab.release(install_cell.released())
    done = colab.run_cell()
    assert done.returncode != 0 and "torch==2.7.0" in done.stderr
    assert colab.says("torch") == "Colab's" and colab.version("torch") == "2.7.0"
    assert "No module named 'prdp_nb'" in colab.says("prdp_nb")

def test_an_installed_package_is_left_alone(colab):
    colab.put(write_wheel(colab.site.parent, "prdp_nb", "0.0.2", said="here before"))
    colab.release(install_cell.released())
    done = colab.run_cell()
    assert done.returncode == 0 and not done.stdout + done.stderr
    assert colab.says("prdp_nb") == "here before"
    assert not list(colab.site.glob("fastcore*"))
