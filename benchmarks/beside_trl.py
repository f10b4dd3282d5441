"""`prdp_nb` beside the DDPOTrainer of TRL 0.23.1 on the same tiny pipeline: images a second, UNet sample-evaluations an image, memory.

    python benchmarks/beside_trl.py [--rounds 3] [--tiny]

TRL runs in an environment of its own, .venv-trl, which is made the first time; it is not changed. Every measurement is a fresh process of one thread that makes
one epoch. First TRL alone is tried at the batch sizes of BATCHES; at the fastest ones it then takes turns with ours, which has the same batch sizes, `--rounds`
times. Both sides sample 32 images an epoch, at T = 10 and guidance 5, train LoRA of rank 4 with one optimizer step an epoch, and have the same reward, the
brightness of a picture. Seconds are of the processor.
"""
import argparse, json, os, subprocess, sys, tempfile
from importlib.metadata import version
from pathlib import Path
import torch
from common import RESULTS, write_rows

HERE = Path(__file__).resolve().parent
TRL_PACKAGES = ("trl==0.23.1", "transformers==4.57.1", "diffusers==0.35.2", "peft==0.17.1", "accelerate==1.11.0")
SETTING = dict(images=32, images_per_prompt=8, steps=10, guidance=5.0)
TINY = dict(images=4, images_per_prompt=2, steps=2, guidance=5.0)
OURS = dict(ddpo=dict(objective="ddpo", cell_fraction=1.0), prdp=dict(objective="prdp", cell_fraction=1.0), prdp_quarter=dict(objective="prdp", cell_fraction=0.25)) # method -> settings
BATCHES = ((8, 8), (32, 32)) # images sampled at once, images or cells trained at once: TRL wants the second to divide the first
PROMPTS = [f"a painting of a {animal}" for animal in ("fox", "duck", "cow", "cat")]

def trl_python(folder: Path) -> Path: # of the environment in that folder, made where it is missing
    python = folder/"bin"/"python"
    if not (folder/".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        same = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "torchvision")]
        subprocess.run([python, "-m", "pip", "install", "-q", *same, *TRL_PACKAGES], check=True)
        (folder/".installed").touch()
    return python

def write_pipeline(folder: Path): # of random weights, in files that both versions of diffusers and transformers read
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    from prdp_nb.emoji_data import make_tokenizer
    from prdp_nb.schedules import log_snr_scheduler
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder/"tokenizer")
    unet = UNet2DConditionModel(sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32,
                                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    vae = AutoencoderKL(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",)*2, up_block_types=("UpDecoderBlock2D",)*2, latent_channels=4, sample_size=32)
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=5, num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length,
                                        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    StableDiffusionPipeline(vae, text, tokenizer, unet, log_snr_scheduler(), None, None, requires_safety_checker=False).save_pretrained(folder)
    backend = json.loads((folder/"tokenizer"/"tokenizer.json").read_text())["model"] # transformers 4 reads the same in two files
    (folder/"tokenizer"/"vocab.json").write_text(json.dumps(backend["vocab"]))
    (folder/"tokenizer"/"merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in backend["merges"])]))
    add_prefix(folder/"text_encoder"/"model.safetensors")

def add_prefix(path: Path): # to the names of a text encoder's weights: as transformers 4 wrote them, and 5 still reads
    from safetensors.torch import load_file, save_file
    save_file({f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in load_file(path).items()}, path, dict(format="pt"))

def measure(python: Path, script: str, settings: dict) -> dict: # what that script prints last
    with tempfile.TemporaryDirectory() as folder:
        command = [python, HERE/script, json.dumps(settings | dict(folder=str(Path(folder)/"run")))]
        done = subprocess.run(command, env=os.environ | dict(OMP_NUM_THREADS="1"), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f"{script} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])

def row(part: str, method: str, turn: int, settings: dict, found: dict) -> dict: # of the table
    about = dict(found["about"])
    return dict(part=part, method=method, turn=turn, sample_batch=settings["sample_batch"], train_batch=settings["train_batch"], images=settings["images"], seconds=round(found["seconds"][0], 3),
                wall=round(found["seconds"][1], 3), forward=found["forward"], trained=found["trained"], megabytes=round(found["megabytes"], 1), fingerprint=found["fingerprint"], trl=about.pop("trl", ""), **about)

def compare(python: Path, setting: dict, batches, turns: int, folder: Path) -> list[dict]:
    write_pipeline(folder/"pipeline")
    (folder/"prompts.txt").write_text("\n".join(PROMPTS[:setting["images"]//setting["images_per_prompt"]]))
    setting, rows = setting | dict(pipeline=str(folder/"pipeline"), prompts=str(folder/"prompts.txt")), []
    def add(part, method, turn, batch):
        settings = setting | dict(sample_batch=batch[0], train_batch=batch[1]) | OURS.get(method, {})
        found = measure(sys.executable, "our_epochs.py", settings) if method in OURS else measure(python, "trl_epochs.py", settings)
        rows.append(row(part, method, turn, settings, found))
        print(part, method, batch, f"{rows[-1]['seconds']:.2f} s", flush=True)
        return rows[-1]["seconds"]
    best = min(batches, key=lambda batch: add("scan", "trl", 0, batch))
    for turn in range(turns):
        for method in ("trl", *OURS): add("compare", method, turn, best)
    marks = {r["fingerprint"] for r in rows}
    if max(marks) > min(marks)*(1 + 1e-4): raise RuntimeError(f"the two sides did not run the same pipeline: a UNet output of squared norm {sorted(marks)}")
    return rows

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each method is measured")
    parser.add_argument("--environment", type=Path, default=HERE.parent/".venv-trl", help="folder of TRL's environment")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    parser.add_argument("--tiny", action="store_true", help="a run of a minute, to see that it works")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting, batches = (TINY, ((2, 2),)) if options.tiny else (SETTING, BATCHES)
        write_rows(options.results/"beside_trl.csv", compare(trl_python(options.environment), setting, batches, options.rounds, Path(folder)))
