"The tables of README.md: runs from their records, models measured (some minutes)."
import shutil, tempfile
from pathlib import Path
import diffusers, numpy as np, pandas as pd, prdp_nb.emoji, torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel
from prdp_nb.comparison import compare_methods, read_table
from prdp_nb.emoji import EmojiScore, EmojiTruth, prompt_splits
from prdp_nb.emoji_data import make_tokenizer
from prdp_nb.emoji_model import world_scheduler
from prdp_nb.emoji_scorers import SETTINGS, labelled_images, within_prompts
from prdp_nb.emoji_world import load_flow
from prdp_nb.models import generate

prdp_nb.emoji.PAPER = (176, 232, 248) # of that world
diffusers.utils.logging.disable_progress_bar()
here, assets = Path(__file__).resolve().parent, Path(tempfile.mkdtemp())
tokenizer = make_tokenizer(assets/"pipeline/tokenizer") # not that of the shipped world
shutil.copytree(here/"vae", assets/"pipeline/vae")
shutil.copytree(here/"flow", assets/"flow")
shutil.copy(here/"scorer.safetensors", assets)
classes = dict(unet=UNet2DConditionModel, vae=AutoencoderKL, text_encoder=CLIPTextModel)
parts = {name: kind.from_pretrained(here/name).float().eval() for name, kind in classes.items()}
base = StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=world_scheduler(),
                               safety_checker=None, feature_extractor=None,
                               requires_safety_checker=False)
base.set_progress_bar_config(disable=True)
search = pd.read_csv(here/"large_scale_search.csv")
print(search.groupby("scorer").base.mean().round(3))
search = search.assign(gain=search.tuned - search.base)[["method", "scorer", "gain"]]
gains = search.groupby(["method", "scorer"]).gain.mean().unstack()[["emoji_score", "emoji_truth"]]
last = pd.read_csv(here/"large_scale_search_metrics.csv").groupby("method").kl.last()
print(gains.join(last).round(3).to_string(), flush=True)
runs = read_table(here/"large_scale.csv").drop_duplicates(["method", "seed", "prompt", "scorer"])
runs = runs.assign(gain=runs.tuned - runs.base, prompt_set="all six")
print(runs.groupby(["method", "scorer"])[["base", "tuned"]].mean().round(3))
changes = runs.pivot_table(index=["method", "seed", "prompt"], columns="scorer", values="gain")
fooled = (changes.emoji_score > 0) & (changes.emoji_truth < 0)
print("score up, truth down:", fooled.groupby("method").mean().round(3).to_dict())
small = read_table(here/"small_scale.csv")
print(small.groupby(["method", "scorer"])[["base", "tuned"]].mean().round(3).to_string())
small = small[small.scorer == "emoji_truth"]
for other in ("ddpo", "ddpo_batch", "grpo", "dpok", "dpo"):
    less = compare_methods(small, "prdp", other).iloc[0][["difference", "low", "high"]]
    print("45 prompts, PRDP's gain of truth less that of", other, less.astype(float).round(3).tolist())
kl = pd.read_csv(here/"small_scale_metrics.csv").groupby(["method", "seed"]).kl
print(kl.apply(lambda kl: kl.tail(5).mean()).groupby("method").mean().round(0).to_dict())
gains = runs.groupby(["method", "seed", "scorer"]).gain.mean().unstack()
metrics = pd.read_csv(here/"large_scale_metrics.csv")
print(gains.join(metrics.groupby(["method", "seed"]).kl.last()).round(3), flush=True)
pair = metrics.query("seed == 2").pivot(index="epoch", columns="method", values="kl")
apart = (pair.prdp_share/pair.prdp - 1).abs()
print(f"PRDP's KL with the offset: {apart[2]:.1e} apart after an update, {apart[160]:.2f} in the end")
for other in ("ddpo", "grpo", "ddpo_share"):
    found = compare_methods(runs.query("scorer == 'emoji_truth'"), "prdp", other).iloc[0]
    print(f"truth, PRDP less {other}: {found.difference:.3f} ({found.low:.3f} to {found.high:.3f})")
rewards = pd.read_csv(here/"large_scale_base.csv").query("prompt_set == 'emoji_train'")
by_prompt = rewards.groupby("prompt").reward
within = by_prompt.var().mean()
between = by_prompt.mean().var() - within/by_prompt.size().iloc[0]
print(f"a prompt decides {between/(between + within):.0%} of the variance; two thirds with an offset "
      f"of {(2*within - between)**0.5:.2f}", flush=True)
truth, splits = EmojiTruth(), prompt_splits()
sets = {name: splits[name][:45]
        for name in ("emoji_animals", "emoji_unseen_pairs", "emoji_painting_large")}
settings = ((5, 1.0), (10, 1.0), (20, 1.0), (10, 3.0), (50, 3.0), (50, 5.0))
for model, pipe, ways in (("base", base, settings), ("flow", load_flow(assets), settings[1::2])):
    for steps, guidance in ways:
        for name, prompts in sets.items():
            images = generate(pipe, prompts, range(45), steps, guidance, batch_size=45)
            found = truth(images, prompts)
            print(f"{model}, {steps} steps, guidance {guidance:g}, {name}: median "
                  f"{np.median(found):.3f}, mean {np.mean(found):.3f}", flush=True)
prompts = splits["emoji_unseen_pairs"][:60] + splits["emoji_painting_large"][:60] # never labelled
_, images, truths = labelled_images(base, prompts, SETTINGS, 99)
flat = [Image.fromarray(image) for image in images.reshape(-1, *images.shape[2:])]
scores = EmojiScore(assets=assets)(flat, [p for p in prompts for _ in SETTINGS])
scores, truths = torch.tensor(scores).view(truths.shape), torch.tensor(truths).float()
print(f"EmojiScore and truth within a prompt: {within_prompts(scores, truths):.3f}, without "
      f"guidance {within_prompts(scores[:, :4], truths[:, :4]):.3f}")
