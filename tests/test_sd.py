"Stable Diffusion v1.4's structure through the whole package: 50 steps, guidance 5, LoRA and full UNet, from a folder to a model that stock diffusers loads."
import json, math, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from diffusers import StableDiffusionPipeline
from prdp_nb.schedules import diffusion_schedule
from prdp_nb.models import generate, latent_shape, load_pipeline
from prdp_nb.config import Config
from prdp_nb.runs import read_metrics
from prdp_nb.training import Trainer
from prdp_nb.trajectories import noise_floor, score
from hub import HubOnThisMachine, files_of, hub_on_this_machine
from tiny_sd import write_tiny_pipeline

PROMPTS = ["a painting of a fox", "a photo of a duck"]

@pytest.fixture(scope="module")
def folder(tmp_path_factory): return write_tiny_pipeline(tmp_path_factory.mktemp("sd")/"tiny")

def test_the_tiny_pipeline_is_built_like_v1_4(folder):
    pipe = load_pipeline(folder)
    blocks = ["CrossAttnDownBlock2D"]*3 + ["DownBlock2D"]
    assert pipe.unet.config.down_block_types == blocks and pipe.unet.config.up_block_types == [name.replace("Down", "Up") for name in blocks[::-1]]
    assert latent_shape(pipe) == (4, 8, 8) and pipe.vae_scale_factor == 8 and pipe.vae.config.scaling_factor == 0.18215
    assert pipe.tokenizer.model_max_length == pipe.text_encoder.config.max_position_embeddings == 77
    assert len(pipe.tokenizer(PROMPTS[0]).input_ids) == 7 and StableDiffusionPipeline.load_config(folder)["scheduler"][1] == "PNDMScheduler"

def test_the_schedule_is_the_paper_s_on_v1_4(folder):
    scheduler = load_pipeline(folder).scheduler
    schedule = diffusion_schedule(scheduler, 50)
    assert schedule.timesteps.tolist() == list(range(981, 0, -20))
    sigma = dict(zip(schedule.timesteps.tolist(), schedule.std.tolist()))
    assert [round(sigma[t], 4) for t in (981, 961, 501, 41, 21, 1)] == [0.4545, 0.4483, 0.2948, 0.0999, 0.0395, 0.0206]
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2) # by hand
    after = np.append(alpha_bar[np.arange(961, 0, -20)], alpha_bar[0])
    now = alpha_bar[np.arange(981, 0, -20)]
    np.testing.assert_allclose(schedule.std, np.sqrt((1 - after)/(1 - now)*(1 - now/after)), rtol=1e-4)
    assert [round(alpha_bar[t], digits) for t, digits in ((0, 5), (1, 6), (981, 7))] == [0.99915, 0.998296, 0.0057755]

@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, folder, tmp_path_factory):
    "A trainer after an epoch of a run."
    place = tmp_path_factory.mktemp(request.param)
    (place/"prompts.txt").write_text("\n".join(PROMPTS))
    config = Config(model=str(folder), adapter=request.param, prompts=str(place/"prompts.txt"), prompts_per_epoch=1, images_per_prompt=3, num_inference_steps=50, guidance_scale=5.0,
                    epochs=1, learning_rate=dict(lora=1e-1, full=1e-3)[request.param], kl_weight=1e-4, clip_range=1e-6, reward="jpeg_compressibility", chunk_size=64, eval_images_per_prompt=1, eval_rewards=(), output_dir=str(place/"run"))
    trainer = Trainer(config)
    before = [p.detach().clone() for p in trainer.learner.policy.denoiser.parameters() if p.requires_grad]
    trainer.train()
    trainer.before_training = before
    return trainer

def test_the_noise_floor_of_float32_is_below_1e_7(trained):
    rollout = trained.collector.sample(PROMPTS[:1], 0)
    assert noise_floor(trained.learner.policy, rollout, trained.config.batch_size) < 1e-7

def test_the_first_ratio_of_an_epoch_is_exactly_1(trained):
    "At θ as it is after an epoch: what was recorded while sampling is, to the bit, what scoring in the same batch gives."
    assert any((a != b).any() for a, b in zip(trained.before_training, (p for p in trained.learner.policy.denoiser.parameters() if p.requires_grad)))
    rollout = trained.collector.sample(PROMPTS[:1], 7)
    again = score(trained.learner.policy, rollout, trained.config.batch_size)
    assert rollout.log_probs.shape == (1, 3, 50) and rollout.log_probs.std() > 0.1
    assert torch.equal(again, rollout.log_probs) and ((again - rollout.log_probs).exp() == 1).all()

def test_an_epoch_trains(trained):
    metrics = read_metrics(trained.folder)
    assert metrics["reward_queries"].tolist() == [3] and metrics["loss"][0] > 0 and 0 < metrics["grad_norm"][0] < math.inf
    assert (metrics["kl"][0], metrics["clip_fraction"][0]) == (0, 0) # θ is still the reference, and every ratio is 1
    assert {"config.yaml", "evaluation.csv", "curves.png", "gallery.png", "final"} <= {path.name for path in trained.folder.iterdir()}

def test_stock_diffusers_paints_with_the_result(trained, folder):
    def paint(pipe): return np.asarray(pipe(PROMPTS[0], num_inference_steps=5, guidance_scale=5.0, eta=1.0, generator=torch.Generator().manual_seed(1)).images[0], int)
    final, lora = trained.folder/"final", trained.config.adapter == "lora"
    stock = StableDiffusionPipeline.from_pretrained(folder if lora else final, safety_checker=None)
    stock.scheduler = load_pipeline(folder).scheduler
    if lora: stock.load_lora_weights(final)
    ours = np.asarray(generate(trained.learner.pipe, PROMPTS[:1], [1], 5, 5.0)[0], int)
    assert np.abs(paint(stock) - ours).max() <= 1
    assert np.abs(paint(load_pipeline(folder)) - ours).max() > 1

def test_v1_4_comes_from_the_hub_by_its_name(folder, tmp_path):
    "With a safety checker beside it, as in the real repository: that is neither fetched nor loaded."
    index = json.loads((folder/"model_index.json").read_text()) | dict(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], feature_extractor=["transformers", "CLIPImageProcessor"])
    files = files_of(folder) | {"model_index.json": json.dumps(index).encode(), "safety_checker/model.safetensors": b"?"*10_000_000, "safety_checker/config.json": b"{}"}
    code = """import sys, torch
from prdp_nb.models import load_pipeline
name, folder = sys.argv[1:]
here, there = load_pipeline(folder), load_pipeline(name)
assert type(there).__name__ == "StableDiffusionPipeline" and there.safety_checker is None
for part in ("unet", "vae", "text_encoder"):
    ours, theirs = getattr(here, part).state_dict(), getattr(there, part).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
assert there.scheduler.config["steps_offset"] == 1 and there.tokenizer("a fox").input_ids == here.tokenizer("a fox").input_ids"""
    with hub_on_this_machine({"CompVis/stable-diffusion-v1-4": files}, tmp_path) as environment:
        done = subprocess.run([sys.executable, "-c", code, "CompVis/stable-diffusion-v1-4", folder], cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert HubOnThisMachine.bytes_sent < 5_000_000
