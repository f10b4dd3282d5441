"""Guards 52_sdxl_sd3_flux: whole pipelines of four more families, of the true structure with few
and random weights, against the stock pipelines of diffusers. As a script this file is what two
processes do."""
import functools
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.normalization import RMSNorm
from forked import run_pair
from PIL import Image

from prdp_nb import algorithm
from prdp_nb.commands import sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.evaluation import base_of, evaluate_runs
from prdp_nb.families import FLOW_ETA, LEAST_STD, tiny_flux, tiny_pipeline
from prdp_nb.finetuning import load_finetuned, make_policy, save_finetuned, seconds_a_sample
from prdp_nb.gradients import backward_log_probs
from prdp_nb.learner import update_options
from prdp_nb.loading import freeze, quiet_loading
from prdp_nb.models import (
    FAMILIES, encode_prompts, family_of, generate, generate_stock, image_size, load_pipeline, network_of,
    sample_latents, sampling_policy)
from prdp_nb.policies import trainable_parameters
from prdp_nb.processes import FSDP, leave_ranks
from prdp_nb.rewards import as_reward, compute_rewards
from prdp_nb.runs import load_checkpoint, read_metrics
from prdp_nb.training import Trainer
from prdp_nb.trajectories import batch_noise, sample_rollout, score
from test_memory import Held
from test_processes import ENV, as_flags, assert_close, weights
from test_resume import breaks, same
from tiny_sd import write_tiny_pipeline

ROOT = Path(__file__).parents[1]
XL, SD3, FLUX = "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"
SANA, SD = "SanaPipeline", "StableDiffusionPipeline"
NAMES = [XL, SD3, FLUX, "schnell", SANA]
SCALE = {SD: 7.0, XL: 5.0, SD3: 4.0, FLUX: 3.5, "schnell": 1.0, SANA: 4.5} # a guidance scale of each
SIDE = {SANA: 32} # pixels of an image, where they are not 64
PROMPTS, SEEDS = ["a painting of a fox", "a photo of a duck"], [5, 6]
TINY = dict(
    epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=4, lora_rank=2,
    batch_size=2, learning_rate=3e-2, reward="colourfulness", eval_images_per_prompt=1,
    eval_rewards=(), save_every=1, reward_retries=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Each pipeline, saved."
    place = tmp_path_factory.mktemp("families")
    for name in NAMES:
        with quiet_loading(), torch.random.fork_rng():
            torch.manual_seed(1)
            pipe = tiny_flux(False) if name == "schnell" else tiny_pipeline(name)
            pipe.save_pretrained(place/name)
    write_tiny_pipeline(place/SD)
    return {name: place/name for name in (SD, *NAMES)}


@pytest.fixture(scope="module")
def loaded(folders):
    "Each pipeline, as the package loads it; nobody changes them."
    return {name: load_pipeline(folder) for name, folder in folders.items()}


@pytest.fixture
def fresh(folders): return lambda name: load_pipeline(folders[name])


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts")/"two.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def stock(folder, lora=None, own_scheduler=False):
    "What diffusers alone makes of a folder, with the scheduler of training or the one it has."
    kind = json.loads((folder/"model_index.json").read_text())["_class_name"]
    with quiet_loading():
        pipe = getattr(diffusers, kind).from_pretrained(folder)
        if own_scheduler: pass
        elif kind == SANA: pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        elif kind in (SD, XL):
            options = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                           clip_sample=False, set_alpha_to_one=False, steps_offset=1)
            pipe.scheduler = diffusers.DDIMScheduler(**options)
        freeze(pipe) # as a loaded one of ours: torch rounds by what wants a gradient, on some processors
        if lora: pipe.load_lora_weights(lora)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe, steps, scale, output_type="pil", eta=0.0, side=None, length=None):
    "The stock pipeline's images, or latents in rows and columns."
    kind = type(pipe).__name__
    options = {SD: dict(eta=eta), XL: dict(eta=eta), FLUX: dict(max_sequence_length=512),
               SANA: dict(use_resolution_binning=False)}.get(kind, {})
    if length is not None: options = options | dict(max_sequence_length=length)
    side = side or SIDE.get(kind, 64)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    with quiet_loading():
        images = pipe(PROMPTS, num_inference_steps=steps, guidance_scale=scale, height=side,
                      width=side, generator=generators, output_type=output_type, **options).images
    if (kind, output_type) != (FLUX, "latent"): return images
    return pipe._unpack_latents(images, side, side, 8)


def levels(images, others):
    "The largest difference of two lists of images."
    pairs = zip(images, others, strict=True)
    return max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in pairs)


def assert_same_latents(pipe, other, scale, steps=4, eta=0.0, side=None, length=None):
    "Ours from `pipe` are the stock ones of `other`."
    policy = sampling_policy(pipe, steps, scale, eta=eta)
    ours = sample_latents(policy, PROMPTS, encode_prompts(pipe, PROMPTS), SEEDS)
    theirs = paint(other, steps, scale, "latent", eta, side, length)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5*theirs.abs().max()
    return theirs


# The same as the stock pipeline


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_the_latents_are_those_of_the_stock_pipeline(name, folders, loaded):
    other = stock(folders[name])
    with_guidance = assert_same_latents(loaded[name], other, SCALE[name])
    if name == "schnell": return
    without = assert_same_latents(loaded[name], other, 1.0)
    assert (with_guidance - without).abs().max() > 1e-3*without.abs().max() # it is told


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_reads_nothing_as_zeros_or_as_the_empty_prompt(zeros, folders, fresh):
    pipe, other = fresh(XL), stock(folders[XL])
    for each in (pipe, other): each.register_to_config(force_zeros_for_empty_prompt=zeros)
    assert_same_latents(pipe, other, SCALE[XL])
    row = family_of(pipe).unconditional(pipe)
    assert zeros == (row["text_embeds"] == 0).all() == (row["encoder_hidden_states"] == 0).all()


def test_sdxl_with_the_paper_s_noise_is_the_stock_pipeline(folders, loaded):
    assert family_of(loaded[XL]).eta == 1
    assert_same_latents(loaded[XL], stock(folders[XL]), SCALE[XL], eta=1.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_images_are_those_of_the_stock_pipeline(name, folders, loaded):
    ours = generate(loaded[name], PROMPTS, SEEDS, 4, SCALE[name], eta=0.0)
    theirs = paint(stock(folders[name]), 4, SCALE[name])
    assert levels(ours, theirs) <= 1 and levels(ours[:1], ours[1:]) > 1
    side = SIDE.get(name, 64)
    assert ours[0].size == (side, side) and image_size(loaded[name]) == side


def test_sdxl_latents_with_a_mean_and_a_std_for_each_channel(folders, fresh): # as of Playground v2.5
    pipe, other = fresh(XL), stock(folders[XL])
    plain = generate(pipe, PROMPTS, SEEDS, 4, SCALE[XL], eta=0.0)
    for each in (pipe, other):
        each.vae.register_to_config(latents_mean=[-0.6, 0.4, 0.1, 0.9], latents_std=[3.0, 0.5, 1.0, 2.0])
    ours, theirs = generate(pipe, PROMPTS, SEEDS, 4, SCALE[XL], eta=0.0), paint(other, 4, SCALE[XL])
    assert levels(ours, theirs) <= 1 and levels(ours, plain) > 1


OTHER_SIDE = {name: 64 if name == SANA else 96 for name in (SD, *NAMES)} # pixels


@pytest.mark.parametrize("name", OTHER_SIDE)
def test_at_another_resolution_the_latents_are_those_of_the_stock_pipeline(name, folders):
    side = OTHER_SIDE[name]
    pipe = load_pipeline(folders[name], resolution=side)
    assert image_size(pipe) == side
    assert_same_latents(pipe, stock(folders[name]), SCALE[name], side=side)
    assert generate(pipe, PROMPTS[:1], SEEDS[:1], 2, SCALE[name])[0].size == (side, side)


@pytest.mark.filterwarnings("ignore:.*lose their end")
@pytest.mark.parametrize("name", [SD3, FLUX, SANA])
def test_of_fewer_tokens_the_latents_are_those_of_the_stock_pipeline(name, folders, loaded):
    pipe = load_pipeline(folders[name], max_sequence_length=4)
    theirs = assert_same_latents(pipe, stock(folders[name]), SCALE[name], length=4)
    policy = sampling_policy(loaded[name], 4, SCALE[name], eta=0.0)
    usual = sample_latents(policy, PROMPTS, encode_prompts(loaded[name], PROMPTS), SEEDS)
    assert (usual - theirs).abs().max() > 1e-4*theirs.abs().max()
    with pytest.warns(UserWarning, match="longer than the text encoder's 4 tokens"):
        encode_prompts(pipe, PROMPTS)


@pytest.mark.parametrize("length", [None, 0])
def test_without_t5_the_latents_are_those_of_the_stock_pipeline(length, folders, tmp_path):
    pipe = stock(folders[SD3])
    for part in ("text_encoder_3", "tokenizer_3"): without(pipe, part)
    pipe.save_pretrained(tmp_path)
    ours = load_pipeline(tmp_path)
    if length is not None: ours.max_sequence_length = length
    assert_same_latents(ours, pipe, SCALE[SD3], length=length)


def test_without_t5_a_run_trains_and_goes_on(folders, prompts, tmp_path):
    pipe = stock(folders[SD3])
    for part in ("text_encoder_3", "tokenizer_3"): without(pipe, part)
    pipe.save_pretrained(tmp_path/"model")
    fields = TINY | dict(model=tmp_path/"model", prompts=prompts, epochs=1,
                         output_dir=tmp_path/"run")
    assert train_command(as_flags(fields)) == 0
    assert train_command(["--resume", str(tmp_path/"run"), "--epochs", "2"]) == 0
    image = tmp_path/"image.png"
    assert sample_command([str(tmp_path/"run"), PROMPTS[0], "--output", str(image)]) == 0
    assert Image.open(image).size == (64, 64)


def test_a_run_keeps_its_resolution_and_its_number_of_tokens(folders, prompts, tmp_path):
    fields = TINY | dict(model=folders[FLUX], prompts=prompts, guidance_scale=3.5, epochs=1,
                         output_dir=tmp_path/"run", resolution=96, max_sequence_length=64)
    assert train_command(as_flags(fields)) == 0
    assert Image.open(tmp_path/"run/samples/epoch_0001.png").width % 96 == 0
    image = tmp_path/"image.png"
    assert sample_command([str(tmp_path/"run"), PROMPTS[0], "--output", str(image)]) == 0
    assert Image.open(image).size == (96, 96)
    config, pipe = load_checkpoint(tmp_path/"run")
    for model in (pipe, base_of(config, pipe)):
        assert image_size(model) == 96
        assert encode_prompts(model, PROMPTS)["encoder_hidden_states"].shape[1] == 64
    by_hand = stock(folders[FLUX], tmp_path/"run/final", own_scheduler=True)
    with quiet_loading():
        expected = by_hand(PROMPTS[0], guidance_scale=3.5, height=96, width=96,
                           max_sequence_length=64, generator=torch.Generator().manual_seed(0))
    assert levels(generate_stock(pipe, PROMPTS[:1], [0], 3.5), expected.images) <= 1


# The schedule, and the log-probs


def noise_levels_of(name, pipe, steps):
    "α and σ at T + 1 levels in float64, from what the stock pipeline's scheduler says."
    if name == XL:
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2
        visited = np.append(np.arange(steps)[::-1]*(1000//steps) + 1, 0)
        alpha_bar = np.cumprod(1 - betas)[visited]
        return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    sigma = pipe.scheduler.sigmas.double().numpy()
    return 1 - sigma, sigma


def tables_by_hand(name, pipe, steps, eta):
    "a, b and s of each step, as the design writes them."
    (alpha, sigma), least = noise_levels_of(name, pipe, steps), 0 if name == XL else LEAST_STD
    rows = []
    for now in range(steps):
        a, s, a1, s1 = alpha[now], sigma[now], alpha[now + 1], sigma[now + 1]
        p, q = (1/a, -s/a) if name == XL else (1, -s)
        std = eta*s1*math.sqrt(1 - (a*s1/(a1*s))**2)
        if std < least: std = 0
        kept = math.sqrt(s1**2 - std**2)
        rows.append((a1*p + kept*(1 - a*p)/s, q*(a1 - a*kept/s), std))
    return np.array(rows).T


@pytest.mark.parametrize("eta", [None, 1.0])
@pytest.mark.parametrize("steps", [4, 28])
@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_is_that_of_the_stock_levels(name, steps, eta, folders, loaded):
    other = stock(folders[name])
    paint(other, steps, 1.0, "latent")
    schedule = sampling_policy(loaded[name], steps, 1.0, eta=eta).schedule
    used = eta or (1.0 if name == XL else FLOW_ETA)
    wanted = tables_by_hand(name, other, steps, used)
    for table, column in zip(("latent_weight", "output_weight", "std"), wanted):
        np.testing.assert_allclose(getattr(schedule, table), column, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(schedule.timesteps, other.scheduler.timesteps, rtol=1e-6)
    cells = np.flatnonzero(wanted[2])
    assert schedule.random_steps.tolist() == cells.tolist()
    assert len(cells) == steps if name == XL else 0 < len(cells) < steps


@pytest.fixture
def recorded(fresh):
    "A policy whose adapter says something, and what it samples."
    def make(name, rank=2, **options):
        pipe = fresh(name)
        policy = make_policy(pipe, 6, SCALE[name], lora_rank=rank, **options)
        condition, seeds = encode_prompts(pipe, PROMPTS), torch.arange(6).view(2, 3)
        untouched = sample_rollout(policy, PROMPTS, condition, seeds, batch_size=4)
        stir(policy)
        return policy, untouched, sample_rollout(policy, PROMPTS, condition, seeds, batch_size=4)
    return make


@torch.no_grad()
def stir(policy, size=0.05):
    "Change all that is trained."
    noise = torch.Generator().manual_seed(3)
    for p in trainable_parameters(policy): p.add_(size*torch.randn(p.shape, generator=noise))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_scored_again_is_what_was_recorded(name, recorded):
    policy, before, rollout = recorded(name)
    assert torch.equal(before.log_probs_ref, before.log_probs) # θ is the reference
    assert not torch.equal(rollout.log_probs_ref, rollout.log_probs)
    again = score(policy, rollout, batch_size=4)
    assert again.shape == (2, 3, len(policy.schedule.random_steps)) and again.std() > 1e-3
    assert torch.equal(again, rollout.log_probs)
    assert ((again - rollout.log_probs).exp() == 1).all()
    reference = score(policy.as_reference(), rollout, batch_size=4)
    assert torch.equal(reference, rollout.log_probs_ref)


@pytest.mark.parametrize("name", NAMES)
def test_a_log_prob_is_that_of_the_noise_that_was_drawn(name, recorded):
    "x' - μ = s·z, whatever the network says, so the log-prob is known from the seed."
    policy, _, rollout = recorded(name)
    noise = batch_noise(policy, torch.arange(6)).double().unflatten(0, (2, 3))
    for column, step in enumerate(policy.schedule.random_steps.tolist()):
        z, std = noise[:, :, step + 1].flatten(2), policy.schedule.std[step].double()
        wanted = -(z**2).mean(-1)/2 - std.log() - math.log(2*math.pi)/2
        recorded_here = rollout.log_probs[..., column].double()
        torch.testing.assert_close(recorded_here, wanted, rtol=0, atol=1e-4)


def in_one_precision(norm, x): # `RMSNorm.forward`, which takes its variance in float32
    return torch.nn.functional.rms_norm(x, norm.dim, norm.weight, norm.eps)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name, recorded, monkeypatch):
    policy, _, rollout = recorded(name)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double) # as diffusers asks in places
    monkeypatch.setattr(RMSNorm, "forward", in_one_precision)
    policy.denoiser.double()
    policy = replace(policy, schedule=policy.schedule.to("cpu", torch.float64))
    rollout = replace(rollout, latents=rollout.latents.double()).of_prompts([0])
    weights = torch.randn(rollout.log_probs.shape, generator=torch.Generator().manual_seed(4))
    weights = weights.double()
    backward_log_probs(policy, rollout, weights, chunk_size=5)
    def value(): return (weights*score(policy, rollout)).sum().item()
    trained = trainable_parameters(policy)
    for p in (trained[0], trained[1], trained[len(trained)//2], trained[-1]):
        place = divmod(p.grad.abs().argmax().item(), p.shape[1])
        step, here = 1e-6, p.data[place].item() # SANA's ReLUs have kinks
        values = []
        for moved in (step, -step):
            p.data[place] = here + moved
            values.append(value())
        p.data[place] = here
        assert (values[0] - values[1])/(2*step) == pytest.approx(p.grad[place].item(), rel=1e-4)


# Runs


@pytest.fixture(scope="module")
def runs(folders, prompts, tmp_path_factory):
    "A run of two epochs of each family: its folder."
    place = tmp_path_factory.mktemp("runs")
    @functools.cache
    def of(name, folder="whole", status=0):
        fields = TINY | dict(model=folders[name], prompts=prompts, guidance_scale=SCALE[name],
                             output_dir=place/folder/name)
        assert train_command(as_flags(fields)) == status
        return place/folder/name
    return of


@pytest.mark.parametrize("name", NAMES)
def test_a_run_learns_and_a_stopped_one_goes_on_to_the_same_bits(name, runs):
    whole = runs(name)
    metrics = read_metrics(whole)
    assert metrics["reward_queries"].tolist() == [4, 8] and (metrics["grad_norm"] > 0).all()
    assert metrics["clip_fraction"][0] == metrics["kl"][0] == 0 != metrics["kl"][1]
    with breaks(6, KeyboardInterrupt()): stopped = runs(name, "stopped", 130)
    assert len(read_metrics(stopped)) == 1
    assert train_command(["--resume", str(stopped)]) == 0
    assert same(stopped, whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_of_a_run_acts_in_the_stock_pipeline(name, runs, folders, loaded):
    final = runs(name)/"final"
    ours = generate(load_finetuned(final, folders[name]), PROMPTS, SEEDS, 4, SCALE[name], eta=0.0)
    assert levels(ours, paint(stock(folders[name], final), 4, SCALE[name])) <= 1
    assert levels(ours, generate(loaded[name], PROMPTS, SEEDS, 4, SCALE[name], eta=0.0)) > 1


@pytest.mark.parametrize("name", [SD, *NAMES])
def test_an_evaluation_by_the_pipeline_is_one_of_the_stock_pipeline(name, runs, folders, prompts):
    "With the scheduler that it came with, and as many steps as it takes by itself."
    options = dict(use_resolution_binning=False) if name == SANA else {}
    def by_hand(lora=None):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1000)]
        pipe, side = stock(folders[name], lora, own_scheduler=True), SIDE.get(name, 64)
        with quiet_loading():
            images = pipe(PROMPTS, guidance_scale=SCALE[name], generator=generators, height=side,
                          width=side, **options).images
        return compute_rewards(as_reward("colourfulness"), images, PROMPTS)
    table = evaluate_runs(runs(name), str(prompts), "colourfulness",
                          samplers=["training", "pipeline"])
    assert table.sampler.tolist() == ["training"]*2 + ["pipeline"]*2
    assert {*table.experiment} == {name, f"{name}/pipeline"}
    trained, own = (table[table.sampler == sampler] for sampler in ("training", "pipeline"))
    np.testing.assert_allclose(own.base, by_hand(), rtol=1e-6)
    np.testing.assert_allclose(own.tuned, by_hand(runs(name)/"final"), rtol=1e-6)
    assert (own.tuned - own.base).abs().min() > 1e-5*own.base.abs().max()
    assert (own.base.to_numpy() - trained.base.to_numpy()).any()


@pytest.mark.parametrize("name", NAMES)
def test_all_of_an_adapter_is_saved(name, fresh, folders, tmp_path):
    "What stock diffusers makes of the file is what the model in memory makes."
    pipe = fresh(name)
    policy = make_policy(pipe, 4, SCALE[name], lora_rank=2)
    stir(policy, 0.2)
    save_finetuned(pipe, policy, tmp_path)
    with quiet_loading(): assert_same_latents(pipe, stock(folders[name], tmp_path), SCALE[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_full_finetune_is_saved_and_loaded(name, fresh, folders, tmp_path):
    pipe = fresh(name)
    policy = make_policy(pipe, 3, SCALE[name], adapter="full")
    condition, seeds = encode_prompts(pipe, PROMPTS), torch.arange(4).view(2, 2)
    rollout = sample_rollout(policy, PROMPTS, condition, seeds)
    config = Config(num_inference_steps=3, guidance_scale=SCALE[name], adapter="full")
    optimizer = torch.optim.AdamW(trainable_parameters(policy), 1e-3)
    rewards = torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    algorithm.update(policy, optimizer, config.make_objective(), rollout, rewards,
                     **update_options(config, epoch=0) | dict(updates=1))
    changed = score(policy, rollout)
    assert not torch.equal(changed, rollout.log_probs)
    assert torch.equal(score(policy.as_reference(), rollout), rollout.log_probs)
    save_finetuned(pipe, policy, tmp_path)
    back, other = load_pipeline(tmp_path), stock(tmp_path)
    came, saved = (stock(place, own_scheduler=True).scheduler for place in (folders[name], tmp_path))
    assert type(came) is type(saved) and came.config == saved.config
    wanted, found = (network_of(each).state_dict() for each in (pipe, back))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert torch.equal(score(make_policy(back, 3, SCALE[name]), rollout), changed)
    assert_same_latents(back, other, SCALE[name])


@pytest.mark.parametrize("name", [XL, SD3, FLUX, SANA])
def test_what_autograd_holds_does_not_depend_on_T(name, fresh):
    def held_bytes(steps):
        "The most bytes that autograd holds at once during an update."
        pipe = fresh(name)
        policy = make_policy(pipe, steps, SCALE[name])
        condition = encode_prompts(pipe, PROMPTS[:1])
        rollout = sample_rollout(policy, PROMPTS[:1], condition, torch.arange(2).view(1, 2))
        Held.now = Held.peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            backward_log_probs(policy, rollout, torch.ones_like(rollout.log_probs), chunk_size=4)
        return Held.peak
    few, many = held_bytes(5), held_bytes(30)
    assert few > 1e6 and many == pytest.approx(few, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_the_time_of_a_call_is_measured(name, loaded):
    assert seconds_a_sample(loaded[name], 1) > 0


def test_the_cells_for_colab_run(folders, prompts, tmp_path, monkeypatch):
    "Those that the page leaves out, on a small model and the CPU."
    cells = json.loads((ROOT/"nbs/52_sdxl_sd3_flux.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells]
    code = [text for text in code if text.startswith("#| eval: false\n")]
    preset = Config.preset
    small = TINY | dict(model=folders[XL], prompts=prompts, output_dir=tmp_path/"run",
                        resolution=96, dtype="float32", chunk_size=4, gradient_checkpointing=False)
    monkeypatch.setattr(Config, "preset", lambda name, **named: preset(name, **named | small))
    page = dict(load_pipeline=load_pipeline, diffusers=diffusers, torch=torch)
    for text in code: exec(text.replace('"cuda"', '"cpu"').replace("bfloat16", "float32"), page)
    assert len(code) == 4 and page["table"].sampler.tolist() == ["training"]*2 + ["pipeline"]*2
    assert page["run"] == tmp_path/"run" and (page["run"]/"final").exists()


# What is refused


def without(pipe, part):
    setattr(pipe, part, None)
    pipe.register_to_config(**{part: (None, None)})


def with_scheduler(pipe, scheduler): pipe.register_modules(scheduler=scheduler)


FAULTS = { # of a saved pipeline, or of what is asked of it -> what is said
    "schnell told": (
        "schnell", None, dict(guidance_scale=3.5),
        "this model needs no guidance: guidance_scale must be 1, not 3.5"),
    "SD 3 without T5's tokenizer": (
        SD3, lambda pipe: without(pipe, "tokenizer_3"), {},
        "comes without its tokenizer_3: take a complete copy"),
    "a number of tokens for SDXL": (
        XL, None, dict(max_sequence_length=64),
        "a StableDiffusionXLPipeline reads a fixed number of tokens: leave max_sequence_length out"),
    "too many tokens": (
        FLUX, None, dict(max_sequence_length=513), "max_sequence_length must be at most 512"),
    "a refiner": (
        XL, lambda pipe: without(pipe, "text_encoder"), {},
        "comes without its text_encoder: take a complete copy"),
    "FLUX without a tokenizer": (
        FLUX, lambda pipe: without(pipe, "tokenizer_2"), {},
        "comes without its tokenizer_2: take a complete copy"),
    "SD 3 with Heun": (
        SD3, lambda pipe: with_scheduler(pipe, diffusers.FlowMatchHeunDiscreteScheduler()), {},
        "a flow is sampled at the levels of a FlowMatchEulerDiscreteScheduler, not of a "
        "FlowMatchHeunDiscreteScheduler"),
    "FLUX with DDIM": (
        FLUX, lambda pipe: with_scheduler(pipe, diffusers.DDIMScheduler()), {},
        "a flow is sampled at the levels of a FlowMatchEulerDiscreteScheduler, not of a "
        "DDIMScheduler"),
    "SDXL with a flow's scheduler": (
        XL, lambda pipe: with_scheduler(pipe, diffusers.FlowMatchEulerDiscreteScheduler()), {},
        "a StableDiffusionXLPipeline is sampled on the noise schedule of a diffusion model, and a "
        "FlowMatchEulerDiscreteScheduler has none"),
    "SANA with DDIM": (
        SANA, lambda pipe: with_scheduler(pipe, diffusers.DDIMScheduler()), {},
        "a flow is sampled at the levels of a FlowMatchEulerDiscreteScheduler, not of a "
        "DDIMScheduler"),
    "SD 3 with latents of an odd size": (
        SD3, lambda pipe: pipe.transformer.register_to_config(sample_size=9), {},
        "images of 72×72 pixels do not fit this StableDiffusion3Pipeline: each side must be a "
        "multiple of 16, at most 128"),
    "FLUX of another size": (
        FLUX, lambda pipe: pipe.vae.register_to_config(sample_size=56), {},
        "images of 56×56 pixels do not fit this FluxPipeline: each side must be a multiple of 16"),
    "SD at 100 pixels": (
        SD, None, dict(resolution=100), "images of 100×100 pixels do not fit this "
        "StableDiffusionPipeline: each side must be a multiple of 8; choose another"),
    "SDXL at 100 pixels": (
        XL, None, dict(resolution=100), "images of 100×100 pixels do not fit this "
        "StableDiffusionXLPipeline: each side must be a multiple of 8; choose another"),
    "SD 3 at 72 pixels": (
        SD3, None, dict(resolution=72), "images of 72×72 pixels do not fit this "
        "StableDiffusion3Pipeline: each side must be a multiple of 16, at most 128"),
    "SD 3 at 144 pixels": (
        SD3, None, dict(resolution=144), "images of 144×144 pixels do not fit this "
        "StableDiffusion3Pipeline: each side must be a multiple of 16, at most 128"),
    "FLUX at 72 pixels": (
        FLUX, None, dict(resolution=72), "images of 72×72 pixels do not fit this FluxPipeline: "
        "each side must be a multiple of 16; choose another"),
    "SANA at 33 pixels": (
        SANA, None, dict(resolution=33), "images of 33×33 pixels do not fit this SanaPipeline: "
        "each side must be a multiple of 32; choose another"),
    "one step of a flow": (
        SD3, None, dict(num_inference_steps=1),
        "all 1 steps of the policy are deterministic (s = 0), so nothing has a log-probability: "
        "make its schedule with eta above 0, such as 1, or with more steps"),
    "no randomness": (SD3, None, dict(eta=0.0), "eta must be above 0, not 0.0"),
    "too much of it": (XL, None, dict(eta=1.5), "eta must be at most 1, not 1.5"),
    "guidance below 1": (FLUX, None, dict(guidance_scale=0.5),
                         "guidance_scale must be at least 1, not 0.5"),
    "a layer of another family": (
        FLUX, None, dict(lora_targets=("to_q", "proj_in")),
        "lora_targets must name layers of the network, such as to_q, to_k, to_v, to_out.0, not "
        "proj_in"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_clear_line(fault, folders, prompts, tmp_path, capsys):
    name, spoil, fields, said = FAULTS[fault]
    model = folders[name]
    if spoil:
        with quiet_loading():
            pipe, model = stock(folders[name]), tmp_path/"model"
            spoil(pipe)
            pipe.save_pretrained(model)
    capsys.readouterr()
    given = TINY | dict(guidance_scale=1.0) | fields
    given |= dict(model=model, prompts=prompts, output_dir=tmp_path/"run")
    assert train_command(as_flags(given)) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("prdp_train: error: ") and said in last
    assert not (tmp_path/"run").exists()


def test_a_family_that_is_not_supported_is_told_those_that_are(tmp_path):
    index, named = dict(_class_name="PixArtSigmaPipeline"), ", ".join(FAMILIES)
    (tmp_path/"model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"is a PixArtSigmaPipeline; supported are {named}"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match="class of pipeline 'object'.*" + ".*".join(FAMILIES)):
        family_of(object())


def test_a_policy_that_draws_nothing_is_refused(fresh):
    for name in NAMES:
        with pytest.raises(ValueError, match="steps of the policy are deterministic"):
            make_policy(fresh(name), 4, 1.0, eta=0.0)
        with pytest.raises(ValueError, match="eta must be between 0 .* not 1.5"):
            make_policy(fresh(name), 4, 1.0, eta=1.5)


def test_a_tiny_pipeline_is_ready_to_be_sampled():
    for name in FAMILIES.keys() - {SD}:
        parts = tiny_pipeline(name).components.values()
        assert not any(part.training for part in parts if isinstance(part, torch.nn.Module))


# Two processes


def config_of(name, folder, prompts, **fields):
    "Of two prompts, one for each process; a chunk holds the cells of one."
    given = dict(model=str(folder/name), prompts=str(prompts), guidance_scale=SCALE[name])
    way = dict(chunk_size=4, learning_rate=1e-3, kl_weight=30)
    return Config(**TINY | given | way | fields)


SHARDED = FSDP | dict(ACCELERATE_USE_FSDP="true", FSDP_RESHARD_AFTER_FORWARD="true")


def worker(folder, prompts):
    "What each of two processes does: a run with the whole model, and one with a share of it."
    Trainer(config_of(SD3, folder, prompts, output_dir=str(folder/"whole"))).train()
    os.environ |= SHARDED
    trainer = Trainer(config_of(SD3, folder, prompts, output_dir=str(folder/"shared")))
    trainer.train()
    weights = [*trainer.learner.pipe.transformer.parameters()]
    held, total = (sum(p.numel() for p in some)
                   for some in ([p.to_local() for p in weights], weights))
    print(f"{type(trainer.ranks).__name__}: {held} of {total}")
    leave_ranks()


def test_two_processes_learn_what_one_learns(folders, prompts, tmp_path):
    "To rounding: each encodes one prompt, and a pixel of an image may be rounded otherwise."
    (tmp_path/SD3).symlink_to(folders[SD3])
    one = Trainer(config_of(SD3, tmp_path, prompts, output_dir=str(tmp_path/"one"))).train()
    pair = run_pair(worker, tmp_path, prompts, environment=ENV, folder=tmp_path)
    for done in pair: assert done.returncode == 0, done.stderr[-4000:]
    wanted, first = weights(one), weights(one, "checkpoints/epoch_0001")
    assert (first - wanted).norm() > 1e-3*wanted.norm()
    for name in ("whole", "shared"):
        assert_close(tmp_path/name, one, rtol=1e-3, kl_atol=1e-3)
        assert (weights(tmp_path/name) - wanted).norm() < 1e-5*wanted.norm()
    shares = [line.split(": ")[1].split(" of ") for done in pair
              for line in done.stdout.splitlines() if line.startswith("Shards: ")]
    assert len(shares) == 2 and sum(int(share) for share, _ in shares) == int(shares[0][1])

