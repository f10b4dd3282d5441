"""An epoch of TRL's `DDPOTrainer` on a pipeline in a folder, measured. Started by beside_trl.py in an environment of its own, with its settings as JSON.

TRL has one optimizer step an epoch here: it accumulates over `train_gradient_accumulation_steps` batches and all timesteps, and these make up the epoch.
"""
import json, random, sys
from importlib.metadata import version
import torch
from common import about, resident_megabytes, seconds

FINGERPRINT = (4, 16, 16) # shape of the latent it is taken of

def brightness(images): return images.mean((1, 2, 3)) # the reward of both sides: (B, 3, H, W) in [0, 1] -> (B,)

class UnetCalls:
    "Counts the samples that pass through a UNet, with and without a graph."
    def __init__(self, unet):
        self.forward = self.trained = 0
        unet.register_forward_pre_hook(self.add)

    def add(self, unet, arguments):
        if torch.is_grad_enabled(): self.trained += len(arguments[0])
        else: self.forward += len(arguments[0])

    def per_image(self, images: int) -> dict: # UNet sample-evaluations an image: without a graph, and forward and backward
        return dict(forward=self.forward/images, trained=self.trained/images)

def fingerprint(pipe) -> float: # as in our_epochs.py
    ids = pipe.tokenizer(["a painting of a fox"], padding="max_length", truncation=True, max_length=pipe.tokenizer.model_max_length, return_tensors="pt").input_ids
    with torch.no_grad(): return pipe.unet(torch.ones(1, *FINGERPRINT), 500, pipe.text_encoder(ids)[0])[0].square().sum().item()

def make_trainer(s: dict):
    from accelerate import PartialState
    from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
    PartialState() # the pipeline's class logs through accelerate before the trainer has started it
    prompts, pipeline = open(s["prompts"]).read().splitlines(), DefaultDDPOStableDiffusionPipeline(s["pipeline"], use_lora=True)
    config = DDPOConfig(mixed_precision="no", sample_num_steps=s["steps"], sample_guidance_scale=s["guidance"], sample_batch_size=s["sample_batch"],
                        sample_num_batches_per_epoch=s["images"]//s["sample_batch"], train_batch_size=s["train_batch"],
                        train_gradient_accumulation_steps=s["images"]//s["train_batch"], per_prompt_stat_tracking=True, save_freq=100_000)
    mark = fingerprint(pipeline.sd_pipeline)
    trainer = DDPOTrainer(config, lambda images, prompts, metadata: (brightness(images), {}), lambda: (random.choice(prompts), {}), pipeline)
    pipeline.sd_pipeline.set_progress_bar_config(disable=True)
    return trainer, mark

def main(s: dict) -> dict:
    torch.set_num_threads(1)
    trainer, mark = make_trainer(s)
    calls, steps = UnetCalls(trainer.sd_pipeline.unet), []
    taken = seconds(lambda: steps.append(trainer.step(1, 0)))
    if steps != [1]: raise RuntimeError(f"one optimizer step an epoch is expected, not {steps}")
    return dict(seconds=taken, **calls.per_image(s["images"]), megabytes=resident_megabytes(), fingerprint=mark, about=about(trl=version("trl")))

if __name__ == "__main__": print(json.dumps(main(json.loads(sys.argv[1]))))
