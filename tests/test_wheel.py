"The wheel alone, in an environment that knows neither this repository nor its notebooks' tools."
import csv, json, os, re, shutil, subprocess, sys, sysconfig, zipfile
from pathlib import Path
import pytest, torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "prdp_nb"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
NO_TOOLS = "import sys; sys.modules.update(dict.fromkeys(['nbdev', 'fastcore', 'execnb']))\n"

def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Made as a release makes it: a source archive from a clean copy, and the wheel from that archive."
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, source/name, ignore=shutil.ignore_patterns("__pycache__"))
        else: shutil.copy(ROOT/name, source)
    run(sys.executable, "-m", "build", "--no-isolation", ".", cwd=source)
    [path] = (source/"dist").glob("*.whl")
    return path

@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "The python of a fresh environment: the wheel installed, its dependencies borrowed, the editable install out of sight."
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder/"venv", cwd=folder)
    python = folder/"venv"/"bin"/"python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # a folder named in a .pth file is searched, but the .pth files inside it, as an editable install's, are not read
    (Path(site)/"borrowed.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return python

def test_wheel_carries_every_module_and_asset(wheel):
    with zipfile.ZipFile(wheel) as archive: names = set(archive.namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT/"prdp_nb").rglob("*") if path.is_file() and path.parent.name != "__pycache__"}
    assert {name for name in names if name.startswith("prdp_nb/")} == expected
    assert any(name.endswith(".safetensors") for name in expected)
    licences = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE-OFL"}

def test_the_embedded_world_stays_under_30_megabytes(): # the laboratory's base models lie beside it
    files = [path for path in (ROOT/"prdp_nb/assets").rglob("*") if path.is_file() and path.parent.name != "lab"]
    assert sum(path.stat().st_size for path in files) < 30e6

def test_installed_package_needs_no_notebook_tools(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert any(line.startswith("Requires-Dist: torch>=") for line in required)
    assert not [line for line in required if any(tool in line for tool in ("nbdev", "fastcore", "jupyter", "ipykernel", "pytest"))]
    assert "Requires-Python: >=3.10" in lines

def test_links_of_the_front_page_lead_somewhere_on_the_index(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        links = re.findall(r"\]\(([^)\s]+)", archive.read(name).decode())
    assert len(links) > 50 and not [link for link in links if not link.startswith(("https://", "#"))]

@pytest.mark.parametrize("command", ["prdp_train", "prdp_evaluate", "prdp_sample"])
def test_installed_commands_explain_themselves(installed, tmp_path, command):
    assert "usage: " in run(installed.with_name(command), "--help", cwd=tmp_path)

def test_wheel_trains_two_epochs_from_outside_the_repository(installed, tmp_path):
    (tmp_path/"two.txt").write_text("a painting of a fox\na painting of a cow\n")
    tiny = dict(output_dir="run", epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
                eval_prompts="two.txt", eval_images_per_prompt=1)
    code = NO_TOOLS + f"from prdp_nb.training import Config, Trainer; Trainer(Config.preset('emoji_small', **{tiny})).train()"
    printed = run(installed, "-c", code + "; import prdp_nb; print(prdp_nb.__file__)", cwd=tmp_path)
    assert Path(printed.splitlines()[-1]).is_relative_to(installed.parents[1])
    with open(tmp_path/"run"/"metrics.csv", newline="") as file: assert len(list(csv.DictReader(file))) == 2
    assert list((tmp_path/"run"/"final").iterdir())

def test_rewards_of_the_wheel_load_nothing_until_they_score(installed, tmp_path):
    from prdp_nb.clip_rewards import AestheticHead, Aesthetic, PickScore
    from prdp_nb.rewards import compute_rewards
    from test_clip_rewards import PROMPTS, SmallHPSv2, photographs, write_clip, write_hps
    write_clip(write_hps(tmp_path))
    torch.save(AestheticHead(12).state_dict(), tmp_path/"aesthetic-model.pth")
    for i, image in enumerate(photographs()): image.save(tmp_path/f"{i}.png")
    code = NO_TOOLS + f"""import prdp_nb.clip_rewards as r
from prdp_nb.rewards import compute_rewards
heavy = {{"open_clip", "transformers", "huggingface_hub", "torchvision", "diffusers"}}
before = heavy & set(sys.modules)
import json, open_clip
from PIL import Image
open_clip.add_model_config("small-hps.json")
r.HPSv2.architecture = "small-hps"
several = 10*r.PickScore(".", "cpu") + 2*r.HPSv2(weights=".", device="cpu")
several += 0.05*r.Aesthetic(".", ".", "cpu")
images = [Image.open(f"{{i}}.png") for i in range(5)]
print(json.dumps([sorted(before), compute_rewards(several, images, {PROMPTS!r}).tolist()]))"""
    printed = run(installed, "-W", "ignore", "-c", code, cwd=tmp_path)
    before, scores = json.loads(printed.splitlines()[-1])
    several = 10*PickScore(tmp_path, "cpu") + 2*SmallHPSv2(weights=tmp_path, device="cpu")
    several += 0.05*Aesthetic(tmp_path, tmp_path, "cpu")
    expected = compute_rewards(several, photographs(), PROMPTS).tolist()
    assert before == [] and scores == pytest.approx(expected, abs=1e-5)
