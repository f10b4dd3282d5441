"An epoch of `prdp_nb` on a pipeline in a folder, measured. Started by beside_trl.py, with its settings as JSON."
import json, sys
import torch
from common import about, ready, resident_megabytes, seconds
from trl_epochs import FINGERPRINT, UnetCalls, brightness
from prdp_nb.models import encode_prompts
from prdp_nb.training import run_epoch
from prdp_nb.config import Config

def fingerprint(pipe) -> float: # of text encoder and UNet: the same number on both sides, or they do not run the same pipeline
    with torch.no_grad(): return pipe.unet(torch.ones(1, *FINGERPRINT), 500, **encode_prompts(pipe, ["a painting of a fox"])).sample.square().sum().item()

def reward(images, prompts): return brightness(images)
reward.takes_tensors = True

def main(s: dict) -> dict:
    torch.set_num_threads(1)
    config = Config(model=s["pipeline"], prompts=s["prompts"], prompts_per_epoch=s["images"]//s["images_per_prompt"], images_per_prompt=s["images_per_prompt"],
                    num_inference_steps=s["steps"], guidance_scale=s["guidance"], lora_rank=4, clip_range=1e-4, eval_rewards=(), device="cpu", epochs=100_000, save_every=100_000,
                    output_dir=s["folder"], objective=s["objective"], cell_fraction=s["cell_fraction"], batch_size=s["sample_batch"], chunk_size=s["train_batch"])
    trainer = ready(config, reward)
    mark, calls = fingerprint(trainer.learner.pipe), UnetCalls(trainer.learner.pipe.unet)
    taken = seconds(lambda: run_epoch(trainer, 1)) # not 0, which has no use for the reference
    return dict(seconds=taken, **calls.per_image(s["images"]), megabytes=resident_megabytes(), fingerprint=mark, about=about())

if __name__ == "__main__": print(json.dumps(main(json.loads(sys.argv[1]))))
