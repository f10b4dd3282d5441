"""Models of every kind that the paper's presets ask for: dtypes, adapters, checkpointing, averages,
memory; and what is said of models and machines that will not do."""
import re
import sys
import types
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline,
                       UNet2DConditionModel)
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from prdp_nb import algorithm, finetuning, gradients, models, scoring, trajectories
from prdp_nb.emoji import ASSETS
from prdp_nb.emoji_model import make_text_encoder
from prdp_nb.gradients import backward_log_probs
from prdp_nb.learner import trained_weights
from prdp_nb.finetuning import make_policy
from prdp_nb.loading import quiet_loading
from prdp_nb.models import (
    Denoiser, StableDiffusion, decode_latents, encode_prompts, encoders_here, load_pipeline, spare_gpu)
from prdp_nb.policies import Policy, trainable_parameters
from prdp_nb.schedules import diffusion_schedule
from prdp_nb.commands import train_command
from prdp_nb.config import Config
from prdp_nb.rewards import RewardError
from prdp_nb.runs import (
    damage, load_checkpoint, newest_intact, read_metrics, saved_checkpoints)
from prdp_nb.training import Trainer
from prdp_nb.trajectories import noise_floor, sample_rollout, score

pytestmark = pytest.mark.usefixtures("quick_pictures")

PROMPTS = ["a painting of a fox", "a painting of a duck"]
HALVES = (torch.bfloat16, torch.float16)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def tiny_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=96,
        norm_num_groups=8, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D",)*2,
        up_block_types=("CrossAttnUpBlock2D",)*2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "The folder of a pipeline with random weights, and of Stable Diffusion's parts and schedule."
    folder, unet = tmp_path_factory.mktemp("models")/"tiny", tiny_unet()
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS/"pipeline/tokenizer")
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=8, down_block_types=("DownEncoderBlock2D",)*2,
        up_block_types=("UpDecoderBlock2D",)*2)
    scheduler = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    with quiet_loading():
        pipe = StableDiffusionPipeline(vae, make_text_encoder(tokenizer), tokenizer, unet,
                                       scheduler, None, None, requires_safety_checker=False)
        pipe.save_pretrained(folder)
    return folder


def start(tiny, adapter="lora", dtype=torch.float32, steps=3, **options):
    "A policy at its start, and what it sampled, scored by its reference as well."
    pipe = load_pipeline(tiny, torch.float32 if adapter == "full" else dtype)
    policy = make_policy(pipe, steps, 5.0, adapter, dtype=dtype, **options)
    condition, seeds = encode_prompts(pipe, PROMPTS), torch.arange(4).view(2, 2)
    return policy, sample_rollout(policy, PROMPTS, condition, seeds)


def flat_gradient(policy):
    return torch.cat([p.grad.flatten() for p in trainable_parameters(policy)])


def gradient(policy, rollout, coefficients, **options):
    backward_log_probs(policy, rollout, coefficients, **options)
    flat = flat_gradient(policy)
    policy.denoiser.zero_grad()
    return flat


def assert_starts_at_the_reference(policy, rollout):
    assert torch.equal(score(policy, rollout), rollout.log_probs)
    assert torch.equal(rollout.log_probs_ref, rollout.log_probs)


def contrast(images, prompts):
    return [float(np.asarray(image).std()) for image in images]


def config(folder, tiny, **fields):
    "A run of seconds."
    prompts = Path(folder).parent/"prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    given = dict(
        model=str(tiny), prompts=str(prompts), output_dir=str(folder), epochs=2,
        prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, updates_per_epoch=2,
        learning_rate=1e-3, eval_images_per_prompt=1, eval_rewards=(), save_every=1,
        reward_retries=0, reward="colourfulness")
    return Config(**(given | fields))


# The paper's table 4: None where it is silent

COLUMNS = ("epochs", "updates_per_epoch", "prompts_per_epoch", "images_per_prompt", "kl_weight",
           "num_inference_steps", "clip_range", "guidance_scale", "learning_rate", "weight_decay",
           "max_grad_norm")
SMALL = (100, 10, 32, 16, 3e-5, 50, 1e-6, 5.0, 1e-5, 1e-4, 1.0)
LARGE = (1000, 1, 64, 8, 3e-6, 50, 1e-4, 5.0, 7e-6, 1e-4, 1.0)
MULTI = (1000, 1, 64, 8, 3e-5, 50, 1e-4, 5.0, 1e-5, 1e-4, 1.0)
KL = (250, None, 32, 16, (0.1, 1, 10), 50, None, 5.0, None, None, None)
TABLE = {
    "paper_small_hpsv2": ("animals", "hpsv2", SMALL),
    "paper_small_pickscore": ("animals", "pickscore", SMALL),
    "paper_large_hpsv2": ("hpdv2_train", "hpsv2", LARGE),
    "paper_large_pickscore": ("hpdv2_train", "pickscore", LARGE),
    "paper_large_multi": ("pickapic_train", "10*pickscore + 2*hpsv2 + 0.05*aesthetic", MULTI),
    "paper_kl_aesthetic": ("animal_names", "aesthetic", KL)}
SD14 = "CompVis/stable-diffusion-v1-4"


@pytest.mark.parametrize("name", TABLE)
def test_presets_are_the_paper_s_to_the_digit(name):
    preset, (prompts, reward, row) = Config.preset(name), TABLE[name]
    assert (preset.prompts, preset.reward) == (prompts, reward)
    assert (preset.model, preset.adapter, preset.objective) == (SD14, "full", "prdp")
    assert (preset.online, preset.ema_decay) == (True, 0.0)
    for column, expected in zip(COLUMNS, row, strict=True):
        allowed = expected if isinstance(expected, tuple) else (expected,)
        if expected is not None: assert getattr(preset, column) in allowed, column


def test_every_paper_preset_is_in_the_table():
    assert {name for name in Config.presets() if name.startswith("paper_")} == set(TABLE)


def test_the_colab_preset_is_for_a_gpu_without_bfloat16():
    preset = Config.preset("colab_t4_small")
    assert (preset.model, preset.adapter, preset.dtype) == (SD14, "lora", "float16")
    assert preset.gradient_checkpointing
    assert preset.chunk_size <= 2 and preset.batch_size <= 4


# What the UNet predicts


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_steps_are_diffusers_ddim_steps(kind):
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                              prediction_type=kind)
    unet = tiny_unet().eval()
    torch.manual_seed(1)
    embeds, empty = torch.randn(2, 1, 24, 96)
    denoiser = Denoiser(unet, StableDiffusion(), (4, 8, 8))
    policy = Policy(denoiser, diffusion_schedule(scheduler, 10), 5.0,
                    unconditional={"encoder_hidden_states": empty})
    rollout = sample_rollout(policy, ["a fox"], {"encoder_hidden_states": embeds},
                             torch.tensor([[7]]), with_reference=False)
    scheduler.set_timesteps(10)
    noise = trajectories.image_noise(7, (4, 8, 8), 10)
    for step, t in enumerate(scheduler.timesteps):
        x, after = rollout.latents[0, :, step], rollout.latents[0, :, step + 1]
        with torch.no_grad(): without, guided = (unet(x, t, e).sample for e in (empty, embeds))
        output, z = without + 5*(guided - without), noise[step + 1]
        theirs = scheduler.step(output, t, x, eta=1.0, variance_noise=z[None]).prev_sample
        torch.testing.assert_close(after, theirs, rtol=1e-4, atol=1e-4)
        std = scheduler._get_variance(t, t - 100 if step < 9 else -1).sqrt()
        density = torch.distributions.Normal(theirs - std*z, std).log_prob(theirs).mean()
        torch.testing.assert_close(rollout.log_probs[0, 0, step], density, rtol=1e-4, atol=1e-4)


def test_the_two_predictions_differ(tiny):
    pipe = load_pipeline(tiny)
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    velocity, noise = (make_policy(p, 3, 5.0).schedule for p in (pipe, load_pipeline(tiny)))
    assert torch.equal(velocity.std, noise.std)
    assert not torch.allclose(velocity.output_weight, noise.output_weight)


# Dtypes


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_paper_s_50_steps_have_no_noise_and_start_at_the_reference(tiny, adapter):
    policy, rollout = start(tiny, adapter, steps=50)
    assert noise_floor(policy, rollout) < 1e-7
    assert_starts_at_the_reference(policy, rollout)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_half_precision(tiny, adapter, dtype):
    policy, rollout = start(tiny, adapter, dtype)
    exact, exact_rollout = start(tiny, adapter)
    assert_starts_at_the_reference(policy, rollout)
    kept = rollout.latents, rollout.log_probs, policy.schedule.std, *trainable_parameters(policy)
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert 0 < (rollout.latents - exact_rollout.latents).abs().max() < 1
    torch.manual_seed(2)
    coefficients = 1e-8*torch.randn(2, 2, 3)
    # each of its own trajectories: on others a shifted mean counts in units of a small σ
    ours = gradient(policy, rollout, coefficients)
    theirs = gradient(exact, exact_rollout, coefficients)
    least = 0.99 if dtype == torch.bfloat16 else 0.999
    assert torch.cosine_similarity(1e8*ours, 1e8*theirs, dim=0) > least
    assert abs(ours.norm()/theirs.norm() - 1) < 0.05


def test_without_the_scale_a_small_gradient_is_lost_in_float16(tiny, monkeypatch):
    policy, rollout = start(tiny, "full", torch.float16)
    monkeypatch.setattr(gradients, "gradient_scale", lambda *given: 1.0)
    assert gradient(policy, rollout, torch.full((2, 2, 3), 1e-8)).norm() == 0


def test_float32_gradients_are_what_they_were_to_the_bit(tiny):
    policy, rollout = start(tiny, "full")
    torch.manual_seed(2)
    coefficients = torch.randn(2, 2, 3)
    for cells, a in zip(torch.arange(12).split(5), coefficients.flatten().split(5)):
        (a*policy.log_prob(*rollout.cells(cells))).sum().backward()
    plain = flat_gradient(policy)
    policy.denoiser.zero_grad()
    assert torch.equal(gradient(policy, rollout, coefficients, chunk_size=5), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gradients_add_to_those_that_are_there(tiny, dtype):
    policy, rollout = start(tiny, "lora", dtype)
    coefficients = torch.full((2, 2, 3), 1e-3)
    once = gradient(policy, rollout, coefficients)
    for p in trainable_parameters(policy): p.grad = torch.ones_like(p)
    added = gradient(policy, rollout, coefficients) - 1
    atol = 2e-7 + 1e-3*once.abs().max().item()
    torch.testing.assert_close(added, once, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_full_run_in_half_precision_keeps_small_steps(tiny, tmp_path, dtype):
    c = config(tmp_path/"run", tiny, adapter="full", dtype=dtype, learning_rate=1e-7)
    trainer = Trainer(c, reward=contrast)
    network, reference = trainer.learner.policy.denoiser, trainer.learner.policy.reference
    start, fixed = ([p.detach().clone() for p in n.parameters()] for n in (network, reference))
    metrics = read_metrics(trainer.train())
    moved = torch.cat([(p - s).abs().flatten() for p, s in zip(network.parameters(), start)])
    # AdamW's steps of 1e-7; bf16 could not tell them from nothing
    assert (moved > 0).float().mean() > 0.8 and moved.max() < 1e-6
    assert all(torch.equal(p, s) for p, s in zip(reference.parameters(), fixed))
    assert metrics["kl"][0] == 0 and np.isfinite(metrics["grad_norm"]).all()
    saved = load_file(tmp_path/"run/final/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in trainer.learner.pipe.unet.named_parameters())
    assert load_checkpoint(tmp_path/"run")[1].unet.dtype == torch.float32


# Memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_gradient_checkpointing_acts_and_changes_nothing(tiny, adapter, dtype):
    held, calls, gradients = [], [], []
    for checkpointing in (False, True):
        policy, rollout = start(tiny, adapter, dtype, gradient_checkpointing=checkpointing)
        assert not policy.denoiser.training
        calls.append(0)
        total = []
        def count(*given): calls[-1] += 1
        def hold(tensor):
            total.append(tensor.nbytes)
            return tensor
        block = policy.denoiser.model.up_blocks[0].resnets[0]
        hook = block.register_forward_pre_hook(count)
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            log_prob = policy.log_prob(*rollout.cells(torch.arange(4)))
        held.append(sum(total))
        log_prob.sum().backward()
        hook.remove()
        gradients.append(flat_gradient(policy))
    assert calls == [1, 2] and held[1] < 0.6*held[0]
    atol = 1e-6*gradients[0].abs().max().item()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=atol)


class Encoder(torch.nn.Linear):
    "Notes where it is sent, and stays."
    def __init__(self):
        super().__init__(1, 1)
        self.sent = []

    def to(self, device):
        self.sent.append(str(device))
        return self


def test_on_a_gpu_the_text_encoder_waits_on_the_cpu_and_images_are_decoded_one_by_one(tiny):
    vae, encoder = load_pipeline(tiny).vae, Encoder()
    gpu = types.SimpleNamespace(device=torch.device("cuda"))
    parts = dict(unet=gpu, text_encoder=encoder, vae=vae)
    elsewhere = spare_gpu(type("StableDiffusionPipeline", (), parts)())
    with encoders_here(elsewhere): assert encoder.sent == ["cpu", "cuda"]
    assert encoder.sent == ["cpu", "cuda", "cpu"]
    def fails():
        with encoders_here(elsewhere): raise RuntimeError
    with pytest.raises(RuntimeError): fails()
    assert encoder.sent[-1] == "cpu"
    sizes, pipe = [], load_pipeline(tiny)
    latents = torch.randn(3, 4, 8, 8)
    together = decode_latents(pipe, latents)
    pipe.vae = vae
    vae.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    apart = decode_latents(pipe, latents)
    for a, b in zip(together, apart, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1
    assert sizes == [1, 1, 1]


def test_a_run_moves_the_text_encoder_back_after_each_use(tiny, tmp_path, monkeypatch):
    trainer, sent = Trainer(config(tmp_path/"run", tiny, epochs=1), reward=contrast), []
    encoder = trainer.learner.pipe.text_encoder
    monkeypatch.setattr(encoder, "to", lambda device: sent.append(str(device)) or encoder)
    trainer.collector.sample(trainer.collector.prompts, 0)
    assert sent == ["cpu", "cpu"] # to the UNet and back


def test_prompts_are_encoded_once_a_group(tiny, tmp_path):
    trainer, rows = Trainer(config(tmp_path/"run", tiny, images_per_prompt=5), reward=contrast), []
    encoder = trainer.learner.pipe.text_encoder
    encoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    rollout = trainer.collector.sample(trainer.collector.prompts, 0)
    assert rows == [2] and rollout.latents.shape[:2] == (2, 5)


# The optimizer and its average


def flat_weights(parameters):
    return torch.cat([p.detach().flatten() for p in parameters if p.requires_grad]).double()


def test_the_average_is_what_becomes_of_a_run(tiny, tmp_path, monkeypatch):
    seen, measured = [], []
    step, evaluate = algorithm.gradient_step, scoring.evaluate
    def watched_step(policy, *given):
        norm = step(policy, *given)
        seen.append(flat_weights(trainable_parameters(policy)))
        return norm
    def watched_evaluate(pipe, *given, **named):
        measured.append(flat_weights(pipe.unet.parameters()))
        return evaluate(pipe, *given, **named)
    monkeypatch.setattr(algorithm, "gradient_step", watched_step)
    monkeypatch.setattr(scoring, "evaluate", watched_evaluate)
    trainer = Trainer(config(tmp_path/"run", tiny, ema_decay=0.2), reward=contrast)
    trainer.train()
    average = seen[0]
    for n, weights in enumerate(seen[1:], 1):
        decay = min(0.2, (1 + n)/(10 + n)) # diffusers' way to forget the start
        average = decay*average + (1 - decay)*weights
    torch.testing.assert_close(measured[-1], average, rtol=0, atol=1e-6)
    assert (average - seen[-1]).abs().max() > 1e-5
    assert torch.equal(flat_weights(trainer.learner.pipe.unet.parameters()), seen[-1])
    folders = tmp_path/"run/final", saved_checkpoints(tmp_path/"run")[-1]
    final, last = (load_file(folder/finetuning.LORA_FILE) for folder in folders)
    live = trained_weights(trainer.learner.pipe, trainer.learner.policy)
    assert all(torch.equal(last[name], live[name]) for name in live)
    assert not all(torch.equal(final[name], last[name]) for name in final)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_run_with_an_average_resumes_to_the_same_bits(tiny, tmp_path, adapter):
    fields = dict(adapter=adapter, ema_decay=0.5, epochs=3, gradient_checkpointing=True)
    straight = Trainer(config(tmp_path/"straight", tiny, **fields), reward=contrast).train()
    calls = []
    def breaks(images, prompts):
        calls.append(len(images))
        if len(calls) > 5: raise RuntimeError("the service is down")
        return contrast(images, prompts)
    breaks.__name__ = "contrast"
    with pytest.raises(RewardError):
        Trainer(config(tmp_path/"broken", tiny, **fields), reward=breaks).train()
    assert len(saved_checkpoints(tmp_path/"broken")) == 2
    broken = Trainer.resume(tmp_path/"broken", reward=contrast).train()
    files = [path.relative_to(straight) for path in straight.glob("final/**/*.safetensors")]
    assert files
    for file in files: assert (straight/file).read_bytes() == (broken/file).read_bytes()
    states = [torch.load(saved_checkpoints(run)[-1]/"training_state.pt", weights_only=True)
              for run in (straight, broken)]
    averages = [state["average"] for state in states]
    weights = [average.pop("shadow_params") for average in averages]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert averages[0] == averages[1]
    for fixed in (dict(ema_decay=0.6), dict(lora_targets=("to_q",)), dict(optimizer="adamw_8bit")):
        with pytest.raises(ValueError, match=f"cannot change {[*fixed][0]}"):
            Trainer.resume(straight, contrast, **fixed)


def test_8_bit_adamw_is_bitsandbytes_own(tiny, tmp_path, monkeypatch):
    from peft.import_utils import is_bnb_available
    is_bnb_available() # peft remembers the answer, and so does not meet the stand-in
    class AdamW8bit(torch.optim.AdamW): pass
    optim = types.ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    c = config(tmp_path/"run", tiny, optimizer="adamw_8bit", weight_decay=0.5)
    optimizer = Trainer(c, reward=contrast).learner.optimizer
    assert type(optimizer) is AdamW8bit
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.5)


def test_without_bitsandbytes_8_bit_adamw_says_what_to_do(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert train_command(flags(config(tmp_path/"run", tiny, optimizer="adamw_8bit"))) == 1
    assert "optimizer 'adamw_8bit' needs bitsandbytes" in one_line(capsys)
    assert not (tmp_path/"run").exists()


def flags(c): # a config as the command line gives it
    given = ["--eval_rewards"]
    for name, value in asdict(c).items():
        parts = value if isinstance(value, tuple) else [str(value)]
        if value not in (None, ()): given += [f"--{name}", *parts]
    return given


def one_line(capsys) -> str: # what a command wrote to stderr
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and lines[0].startswith("prdp_train: error: ")
    return lines[0]


def test_targets_of_an_adapter(tiny, tmp_path):
    c = config(tmp_path/"run", tiny, lora_targets=("to_q", "conv1"), lora_rank=2, epochs=1)
    trainer = Trainer(c, reward=contrast)
    trained = [name for name, p in trainer.learner.pipe.unet.named_parameters() if p.requires_grad]
    found = {re.search(r"(to_q|conv1)\.lora_", name)[1] for name in trained}
    assert found == {"to_q", "conv1"}
    trainer.train()
    weights = load_file(tmp_path/"run/final"/finetuning.LORA_FILE)
    assert any("conv1" in name for name in weights)
    assert all(("conv1" in name) != ("to_q" in name) for name in weights)
    assert load_checkpoint(tmp_path/"run")[1].unet.peft_config


# What will not do


HUB = { # what the hub says -> what the user reads
    "gone": ("RepositoryNotFoundError", "the hub has no such repository, or keeps it private"),
    "unreachable": ("LocalEntryNotFoundError",
                    "the hub cannot be reached, and it was not downloaded before"),
    "refused": ("HfHubHTTPError", "connection error")}


@pytest.mark.parametrize("what", HUB)
def test_a_hub_that_hands_nothing_out(what, monkeypatch):
    from huggingface_hub import errors
    name, says = HUB[what]
    class Refusal(getattr(errors, name)):
        def __init__(self): OSError.__init__(self, "two\nlines")
        __str__ = OSError.__str__
    Refusal.__name__ = name
    def refuse(*given, **named): raise Refusal
    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", refuse)
    with pytest.raises(ValueError) as caught: load_pipeline("someone/their-model")
    said = str(caught.value)
    for part in ("no pipeline at 'someone/their-model'", says, "give its folder as model"):
        assert part in said
    assert "\n" not in said


KINDS = ["KandinskyPipeline", "PixArtAlphaPipeline", "StableDiffusionInpaintPipeline"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_the_hub", [False, True])
def test_another_kind_of_pipeline(kind, on_the_hub, tmp_path, monkeypatch):
    index = tmp_path/"model_index.json"
    index.write_text(f'{{"_class_name": "{kind}"}}')
    def download(*given, **named): return str(index)
    if on_the_hub: monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    says = f"is a {kind}; supported are StableDiffusionPipeline"
    with pytest.raises(ValueError, match=says):
        load_pipeline("someone/their-model" if on_the_hub else tmp_path)


def test_latents_that_overflow_in_float16_stop_the_run_and_another_dtype_goes_on(
        tiny, tmp_path, capsys):
    trainer = Trainer(config(tmp_path/"run", tiny, epochs=3, dtype="float16"), reward=contrast)
    def overflow(module, given, output):
        last_step_of_epoch_2 = trainer.progress.epochs == 1 and given[1].flatten()[0] == 1
        return (output[0]*(1e6 if last_step_of_epoch_2 else 1),) # beyond 65,504
    trainer.learner.pipe.unet.register_forward_hook(overflow)
    says = (r"epoch 2: latents became non-finite at step 2 of 2 \(timestep 1\) "
            "for the prompt '.*', with the network in float16; use dtype bfloat16 or float32")
    with pytest.raises(FloatingPointError, match=says): trainer.train()
    assert "to go on: prdp_train --resume" in capsys.readouterr().out
    checkpoint = newest_intact(tmp_path/"run")
    assert checkpoint.name == "epoch_0001" and damage(checkpoint) == ""
    Trainer.resume(tmp_path/"run", contrast, dtype="bfloat16").train()
    assert read_metrics(tmp_path/"run")["epoch"].tolist() == [1, 2, 3]


def test_images_that_overflow_in_float16_are_no_black_images(tiny):
    pipe = load_pipeline(tiny, torch.float16)
    says = ("the VAE's images are not finite, with the VAE in float16; "
            "use dtype bfloat16 or float32")
    with pytest.raises(FloatingPointError, match=says):
        decode_latents(pipe, torch.full((1, 4, 8, 8), 6e4))


def runs_out(owner, name, monkeypatch, when=lambda: True):
    "That function needs more memory than the GPU has."
    original = getattr(owner, name)
    def full(*given, **named):
        if when():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB.")
        return original(*given, **named)
    monkeypatch.setattr(owner, name, full)


def test_a_gpu_that_is_too_small_for_one_of_the_parts_of_an_epoch(tiny, monkeypatch):
    pipe = load_pipeline(tiny)
    policy, rollout = start(tiny)
    seeds, x_0 = torch.arange(4).view(2, 2), rollout.latents[:, :, -1].flatten(0, 1)
    def again(): sample_rollout(policy, PROMPTS, rollout.condition, seeds, batch_size=64)
    def scored(): score(policy, rollout, batch_size=3)
    def backward(chunk_size):
        gradient(policy, rollout, torch.ones(2, 2, 3), chunk_size=chunk_size)
    four = "sampling with batch_size 4: try batch_size 2" # there are no more than 4 to sample
    last = ("with chunk_size 1: try dtype bfloat16 or float16, gradient_checkpointing true, "
            "or adapter lora")
    for owner, name, work, says in (
            (trajectories, "sample_trajectories", again, four),
            (trajectories, "score_trajectories", again, four),
            (trajectories, "score_trajectories", scored,
             "scoring with batch_size 3: try batch_size 1"),
            (torch.Tensor, "backward", lambda: backward(8),
             "going backward with chunk_size 8: try chunk_size 4"),
            (torch.Tensor, "backward", lambda: backward(1), last),
            (AutoencoderKL, "decode", lambda: decode_latents(pipe, x_0, 2),
             "decoding with batch_size 2: try batch_size 1")):
        with monkeypatch.context() as patch:
            runs_out(owner, name, patch)
            with pytest.raises(MemoryError, match=f"out of GPU memory while .*{says}"): work()


def test_a_run_that_is_out_of_memory_goes_on_with_smaller_chunks(tiny, tmp_path, monkeypatch):
    trainer = Trainer(config(tmp_path/"run", tiny, chunk_size=3), reward=contrast)
    with monkeypatch.context() as patch:
        runs_out(torch.Tensor, "backward", patch, lambda: trainer.progress.epochs == 1)
        says = ("epoch 2: out of GPU memory while going backward with chunk_size 3: "
                "try chunk_size 1")
        with pytest.raises(MemoryError, match=says): trainer.train()
    assert newest_intact(tmp_path/"run").name == "epoch_0001"
    Trainer.resume(tmp_path/"run", contrast, chunk_size=1).train()
    assert read_metrics(tmp_path/"run")["epoch"].tolist() == [1, 2]


def test_the_images_of_an_evaluation_need_memory_too_and_the_command_says_so_in_a_line(
        tiny, tmp_path, monkeypatch, capsys):
    runs_out(models, "sample_trajectories", monkeypatch)
    assert train_command(flags(config(tmp_path/"run", tiny, batch_size=2))) == 1
    says = ("evaluation before: out of GPU memory while sampling with batch_size 2: "
            "try batch_size 1")
    assert says in one_line(capsys)
