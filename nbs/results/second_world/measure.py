"The table of README.md: the truth about images of the parts beside this file (a minute of two cores)."
import tempfile
from pathlib import Path
import diffusers, numpy as np, prdp_nb.emoji
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel
from prdp_nb.emoji import EmojiTruth, prompt_splits
from prdp_nb.emoji_data import make_tokenizer
from prdp_nb.emoji_model import world_scheduler
from prdp_nb.models import generate

prdp_nb.emoji.PAPER = (176, 232, 248) # of that world
diffusers.utils.logging.disable_progress_bar()
here = Path(__file__).resolve().parent
tokenizer = make_tokenizer(Path(tempfile.mkdtemp())) # not that of the shipped world
classes = dict(unet=UNet2DConditionModel, vae=AutoencoderKL, text_encoder=CLIPTextModel)
parts = {name: kind.from_pretrained(here/name).float().eval() for name, kind in classes.items()}
pipe = StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=world_scheduler(),
                               safety_checker=None, feature_extractor=None,
                               requires_safety_checker=False)
pipe.set_progress_bar_config(disable=True)
truth, splits = EmojiTruth(), prompt_splits()
sets = {name: splits[name][:45]
        for name in ("emoji_animals", "emoji_unseen_pairs", "emoji_painting_large")}
for steps, guidance in ((10, 1.0), (20, 1.0), (10, 3.0), (50, 3.0), (50, 5.0)):
    for name, prompts in sets.items():
        images = generate(pipe, prompts, range(45), steps, guidance, batch_size=45)
        found = truth(images, prompts)
        print(f"{steps} steps, guidance {guidance:g}, {name}: median {np.median(found):.3f}, "
              f"mean {np.mean(found):.3f}", flush=True)
