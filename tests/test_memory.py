"""The memory of an update is set by the chunk, not by the number of denoising steps T, nor by the
epochs before it. For 19_learner and 24_training."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prdp_nb import algorithm, training
from prdp_nb.config import Config
from prdp_nb.emoji_model import make_unet
from prdp_nb.learner import update_options
from prdp_nb.models import Denoiser, StableDiffusion
from prdp_nb.objectives import prdp_loss
from prdp_nb.policies import Policy, trainable_parameters
from prdp_nb.schedules import diffusion_schedule, log_snr_scheduler
from prdp_nb.training import Trainer
from prdp_nb.trajectories import Rollout, score

IMAGES, CHUNK = 2, 8


def setting(num_inference_steps):
    "A policy, and a rollout of random latents with rewards, for T steps."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    empty = {"encoder_hidden_states": torch.randn(1, 24, 96)}
    schedule = diffusion_schedule(log_snr_scheduler(), num_inference_steps)
    unet = make_unet(block_out_channels=(32, 64)).eval()
    denoiser = Denoiser(unet, StableDiffusion(), (16, 8, 8))
    policy = Policy(denoiser, schedule, 5.0, unconditional=empty)
    latents = torch.randn(1, IMAGES, num_inference_steps + 1, 16, 8, 8)
    condition = {"encoder_hidden_states": torch.randn(1, 24, 96)}
    unknown = torch.zeros(1, IMAGES, num_inference_steps)
    rollout = Rollout(["a fox"], condition, empty, schedule.random_steps, latents, unknown, unknown)
    rollout.log_probs = rollout.log_probs_ref = score(policy, rollout, CHUNK)
    return policy, rollout, torch.randn(1, IMAGES)


def update(policy, rollout, rewards):
    "Two updates as a run makes them."
    config = Config(chunk_size=CHUNK, batch_size=CHUNK, updates_per_epoch=2, kl_weight=1e-3,
                    clip_range=1.0)
    optimizer = torch.optim.AdamW(trainable_parameters(policy), 1e-5)
    algorithm.update(policy, optimizer, config.make_objective(), rollout, rewards,
                     **update_options(config, epoch=0))


def naive_update(policy, rollout, rewards):
    "One update with the whole graph held, as the equations are written."
    cells = rollout.cells(torch.arange(rollout.log_probs.numel()))
    log_probs = policy.log_prob(*cells).view_as(rollout.log_probs)
    loss = prdp_loss(log_probs, rollout.log_probs, rollout.log_probs_ref, rewards, clip_range=1.0,
                     kl_weight=1e-3)
    loss.backward()


class Held:
    "A tensor that autograd holds for the backward pass, counted as long as it is held."
    now = peak = 0
    def __init__(self, tensor):
        self.tensor = tensor
        Held.now += tensor.nbytes
        Held.peak = max(Held.peak, Held.now)
    def __del__(self): Held.now -= self.tensor.nbytes


def held_bytes(work, num_inference_steps):
    "The most bytes that autograd holds at once while `work` runs."
    arguments = setting(num_inference_steps)
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        work(*arguments)
    return Held.peak


def test_what_autograd_holds_does_not_depend_on_T():
    few, many = (held_bytes(update, steps) for steps in (5, 50))
    assert few > 1e6 and many == pytest.approx(few, rel=0.01)
    assert held_bytes(naive_update, 50) > 5*many # the measure sees what the chunks save


ALONE = """
import sys
sys.path.insert(0, {folder!r})
import test_memory
test_memory.{work}(*test_memory.setting({steps}))
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1])/1024 for line in lines if line.startswith("VmHWM")))
"""


def resident_megabytes(work, num_inference_steps):
    """The largest resident memory of a process that does nothing else. Not `ru_maxrss`: a child
    inherits its parent's."""
    folder = str(Path(__file__).parent)
    code = ALONE.format(folder=folder, work=work.__name__, steps=num_inference_steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_does_not_depend_on_T():
    few, many = (resident_megabytes(update, steps) for steps in (5, 50))
    naive = resident_megabytes(naive_update, 50)
    print(f"peak resident memory: T = 5 {few:.0f} MB, T = 50 {many:.0f} MB, "
          f"T = 50 with the whole graph {naive:.0f} MB")
    assert many <= 1.05*few
    assert naive > 1.05*few


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_epochs(tiny_model, prompt_file, tmp_path, monkeypatch):
    """Of 100 epochs, or as many as `PRDP_EPOCHS` says: after nine tenths of them within 2 % of
    after one tenth. The issue's 1000: `PRDP_EPOCHS=1000 pytest tests/test_memory.py -k epochs`."""
    epochs, resident = int(os.environ.get("PRDP_EPOCHS", 100)), {}
    config = Config(model=str(tiny_model), prompts=str(prompt_file), output_dir=tmp_path/"run",
                    epochs=epochs, prompts_per_epoch=1, images_per_prompt=2, num_inference_steps=1,
                    learning_rate=1e-5, reward="colourfulness", eval_images_per_prompt=1,
                    eval_rewards=(), save_every=max(1, epochs//20), keep_checkpoints=2)
    trainer = Trainer(config)
    record = training.record
    def measured(trainer, row, images):
        record(trainer, row, images)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident[row["epoch"]] = pages*os.sysconf("SC_PAGE_SIZE")/2**20
    monkeypatch.setattr(training, "record", measured)
    trainer.train()
    first, last = epochs//10, epochs - epochs//10
    early, late = resident[first], resident[last]
    print(f"resident memory of {epochs} epochs: {early:.1f} MB after {first}, {late:.1f} MB after "
          f"{last}")
    assert late <= 1.02*early
