"""Runs as processes: training and sampling, Ctrl-C, bad input, and what must be the same twice. For
24_training."""
import csv
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from PIL import Image

from prdp_nb.algorithm import train
from prdp_nb.commands import sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.finetuning import LORA_FILE, PipelineWorld, make_policy
from prdp_nb.models import load_pipeline
from prdp_nb.policies import trainable_parameters
from prdp_nb.prompts import load_prompts
from prdp_nb.rewards import RewardError, as_reward, compute_rewards
from prdp_nb.runs import read_metrics
from prdp_nb.training import Trainer, base_means

TINY = dict(epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
            learning_rate=1e-2, eval_images_per_prompt=1, eval_rewards=("emoji_score",),
            save_every=1, reward_retries=0)
ENV = os.environ | dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1",
                        PYTHONUNBUFFERED="1")


@pytest.fixture
def tiny(tiny_model, prompt_file, tmp_path):
    "Makes configurations of runs of seconds."
    given = TINY | dict(model=str(tiny_model), output_dir=str(tmp_path/"run"),
                        prompts=str(prompt_file))
    return lambda **fields: Config(**(given | fields))


def command(name, *arguments):
    "How the installed script of that name is started."
    script = f"import sys; from prdp_nb.commands import {name} as main; sys.exit(main())"
    return [sys.executable, "-c", script, *map(str, arguments)]


def train_arguments(folder, prompt_file, **fields):
    flags, parts = TINY | dict(output_dir=folder, prompts=prompt_file) | fields, []
    for name, value in flags.items():
        values = value if isinstance(value, tuple) else [value]
        parts += [f"--{name}", *map(str, values)]
    return parts


def finish(*arguments):
    return subprocess.run(command(*arguments), env=ENV, capture_output=True, text=True,
                          timeout=300)


def pixel_difference(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


def rows_of(path):
    return list(csv.reader(path.read_text().splitlines()))


def stock_image(pipe, seed):
    "A fox, by the pipeline's own sampler."
    generator = torch.Generator().manual_seed(seed)
    return pipe("a painting of a fox", num_inference_steps=2, guidance_scale=5.0, eta=1.0,
                generator=generator).images[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory, prompt_file):
    folder = tmp_path_factory.mktemp("run")/"first"
    done = finish("train_command", *train_arguments(folder, prompt_file))
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_leaves_its_folder_and_says_so(run):
    folder, done = run
    files = ("config.yaml metrics.csv evaluation.csv before.safetensors curves.png gallery.png "
             "samples checkpoints final .lock")
    assert {path.name for path in folder.iterdir()} == {*files.split()}
    checkpoint = folder/"checkpoints/epoch_0002"
    assert (folder/"final"/LORA_FILE).exists() and (checkpoint/LORA_FILE).exists()
    header, *rows = rows_of(folder/"metrics.csv")
    columns = "epoch reward_queries reward_mean reward_std loss kl clip_fraction grad_norm seconds"
    assert header == columns.split()
    assert [row[:2] for row in rows] == [["1", "4"], ["2", "8"]]
    kept = {LORA_FILE, "training_state.pt", "metrics.csv", "checksums.json"}
    assert {path.name for path in checkpoint.iterdir()} == kept
    for part in (f"run folder: {folder}", "95 % interval", "emoji_score"):
        assert part in done.stdout
    evaluation = list(csv.DictReader((folder/"evaluation.csv").read_text().splitlines()))
    columns = "experiment method seed prompt_set prompt scorer base tuned"
    assert list(evaluation[0]) == columns.split()
    animals = ("fox", "duck", "cow")
    assert {row["prompt"] for row in evaluation} == {f"a painting of a {a}" for a in animals}
    assert any(float(row["base"]) != float(row["tuned"]) for row in evaluation)


def test_same_command_same_seed_same_numbers(run, tiny, prompt_file, tmp_path):
    def numbers(folder): return [row[:-1] for row in rows_of(folder/"metrics.csv")]
    arguments = [str(part) for part in train_arguments(tmp_path/"again", prompt_file)]
    assert run_forked(train_command, arguments, environment=ENV, folder=tmp_path).returncode == 0
    Trainer(tiny(model="emoji", output_dir=tmp_path/"other", seed=1)).train()
    assert numbers(tmp_path/"again") == numbers(run[0])
    assert numbers(tmp_path/"other") != numbers(run[0])
    weights = [(folder/"final"/LORA_FILE).read_bytes() for folder in (tmp_path/"again", run[0])]
    assert weights[0] == weights[1]


def test_sample_gives_the_image_of_stock_diffusers(run, tmp_path):
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from prdp_nb.emoji import ASSETS
    arguments = [str(run[0]), "a painting of a fox", "--output"]
    done = run_forked(sample_command, [*arguments, str(tmp_path/"3.png"), "--seed", "3"],
                      environment=ENV, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sample_command([*arguments, str(tmp_path/"4.png"), "--seed", "4"]) == 0
    ours, other = (Image.open(tmp_path/f"{seed}.png") for seed in (3, 4))
    pipe = StableDiffusionPipeline.from_pretrained(ASSETS/"pipeline", dtype=torch.float32,
                                                   safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    base = stock_image(pipe, seed=3)
    pipe.load_lora_weights(run[0]/"final")
    assert pixel_difference(ours, stock_image(pipe, seed=3)) <= 1
    assert pixel_difference(ours, base) > 1 and pixel_difference(ours, other) > 1


def heed_ctrl_c():
    "A shell without job control has what it starts in the background ignore it."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_usable_run_folder(prompt_file, tmp_path):
    from prdp_nb.finetuning import load_finetuned
    arguments = train_arguments(tmp_path/"run", prompt_file, epochs=1000)
    process = subprocess.Popen(
        command("train_command", *arguments), env=ENV, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    metrics = tmp_path/"run/metrics.csv"
    for _ in range(2400):
        if process.poll() is not None or metrics.exists() and len(rows_of(metrics)) > 2: break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert f"the model as it was then is in {tmp_path/'run/final'}" in out
    assert "Traceback" not in err
    epochs = read_metrics(tmp_path/"run")["epoch"]
    assert epochs.tolist() == list(range(1, len(epochs) + 1))
    assert f"interrupted after {len(epochs)} of 1000 epochs" in out
    assert (tmp_path/"run/curves.png").exists() and (tmp_path/"run/gallery.png").exists()
    load_finetuned(tmp_path/"run/final")


BAD = [ # flags, what the one line on stderr must say
    (["--preset", "emoji_smal"], ["emoji_smal", "'emoji_small'", "paper_large_hpsv2"]),
    (["--model", "emojy"], ["unknown model 'emojy'", "'emoji'"]),
    (["--reward", "emoji_scor"], ["unknown reward 'emoji_scor'", "'emoji_score'"]),
    (["--eval_rewards", "emoji_juge"], ["'emoji_juge'", "'emoji_judge'"]),
    (["--prompts", "emoji_animal"], ["'emoji_animal'", "'emoji_animals'"]),
    (["--prompts", "missing.txt"], ["missing.txt"]),
    (["--prompts", "{here}/empty.txt"], ["empty.txt", "empty"]),
    (["--prompts", "{here}/prompts.docx"], ["prompts.docx", ".docx", ".jsonl"]),
    (["--prompts", "{here}/prompts.csv", "--prompt_column", "caption"],
     ["caption", "text", "other"]),
    (["--images_per_prompt", "1"], ["images_per_prompt must be at least 2, not 1"]),
    (["--kl_weight", "0"], ["kl_weight must be above 0, not 0"]),
    (["--clip_range", "-0.0001"], ["clip_range must be above 0, not -0.0001"]),
    (["--num_inference_steps", "0"], ["num_inference_steps must be at least 1, not 0"]),
    (["--prompts_per_epoch", "0"], ["prompts_per_epoch must be at least 1, not 0"]),
    (["--prompts_per_epoch", "46"], ["46", "45"]),
    (["--num_inference_steps", "1001"], ["1001", "1000"]),
    (["--epochs", "many"], ["epochs must be of type int, not 'many'"]),
    (["--objective", "prpd"], ["prpd", "prdp"]),
    (["--dtype", "fp16"], ["unknown dtype 'fp16'", "'float16'"]),
    (["--ema_decay", "1"], ["ema_decay must be below 1, not 1"]),
    (["--lora_targets", "to_q", "to_x"],
     ["lora_targets must name layers of the network, such as to_q", "not to_x"]),
    (["--device", "gpu"], ["device 'gpu' cannot be used here"]),
    (["--config", "{here}/none.yaml"], ["none.yaml"]),
    (["--config", "{here}/wrong.yaml"], ["guidence_scale", "guidance_scale"]),
    (["--output_dir", "{here}"],
     ["exists and is not empty", "choose another one (--output_dir), or delete it"]),
    (["--reward_retries", "-1"], ["reward_retries must be at least 0, not -1"]),
    (["--on_reward_error", "skip"], ["on_reward_error", "'skip'", "'skip_prompt'"]),
    (["--keep_checkpoints", "0"], ["keep_checkpoints must be at least 1, not 0"]),
    (["--config", "{here}/empty.txt", "--output_dir", "{here}/prompts.csv"],
     ["prompts.csv' exists and is not empty"]),
]


@pytest.mark.parametrize("flags, says", BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_is_met_before_any_sampling(flags, says, tmp_path, capsys, monkeypatch):
    (tmp_path/"empty.txt").touch()
    (tmp_path/"prompts.docx").write_text("a fox")
    (tmp_path/"prompts.csv").write_text("text,other\na fox,1\n")
    (tmp_path/"wrong.yaml").write_text("guidence_scale: 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prdp_nb.scoring.sample_epoch", lambda *a, **k: pytest.fail("sampled"))
    output = [] if "--output_dir" in flags else ["--output_dir", str(tmp_path/"run")]
    assert train_command([*output, *(flag.format(here=tmp_path) for flag in flags)]) == 1
    error = capsys.readouterr().err
    for part in says: assert part in error
    assert error.startswith("prdp_train: error: ") and not (tmp_path/"run").exists()


def test_a_bad_command_ends_with_one_line_and_status_1(tmp_path):
    done = finish("train_command", "--output_dir", tmp_path/"run", "--images_per_prompt", 1)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.strip().startswith("prdp_train: error: images_per_prompt")
    assert sample_command([str(tmp_path), "a fox"]) == 1


@pytest.mark.parametrize("name", ["train_command", "sample_command"])
def test_help_reads_like_documentation(name):
    done = finish(name, "--help")
    assert done.returncode == 0 and "Example: prdp_" in done.stdout
    if name == "train_command":
        for field in Config.__dataclass_fields__: assert f"--{field} " in done.stdout


def contrast(images, prompts):
    return [float(np.asarray(image).std()) for image in images]


WRONG = {
    "too few scores": (lambda images, prompts: contrast(images, prompts)[:-1], "scores for"),
    "nan": (lambda images, prompts: [float("nan")]*len(images), "nan"),
    "raises": (lambda images, prompts: 1/0, "division by zero"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_reward_is_found_before_the_run_folder_is_made(name, tiny, tmp_path):
    reward, says = WRONG[name]
    with pytest.raises(RewardError, match=says): Trainer(tiny(), reward=reward).train()
    assert not (tmp_path/"run").exists()


@pytest.mark.parametrize("name", WRONG)
def test_a_reward_that_breaks_later_leaves_a_usable_run_folder(name, tiny, tmp_path, capsys):
    from prdp_nb.finetuning import load_finetuned
    calls, (wrong, says) = [], WRONG[name]
    def reward(images, prompts):
        calls.append(len(images))
        asked_well = len(calls) < 5 # noise, first images, those of the base, first epoch
        return contrast(images, prompts) if asked_well else wrong(images, prompts)
    with pytest.raises(RewardError, match=says): Trainer(tiny(), reward=reward).train()
    assert "stopped by RewardError after 1 of 2 epochs" in capsys.readouterr().out
    assert read_metrics(tmp_path/"run")["epoch"].tolist() == [1]
    assert (tmp_path/"run/curves.png").exists() and (tmp_path/"run/gallery.png").exists()
    load_finetuned(tmp_path/"run/final", tiny().model)


def test_a_gradient_that_is_not_finite_stops_the_run(tiny, tmp_path, monkeypatch):
    from prdp_nb import algorithm
    from safetensors.torch import load_file
    def broken(function, log_probs):
        return torch.tensor(0.), torch.full_like(log_probs, float("nan"))
    monkeypatch.setattr(algorithm, "coefficients", broken)
    with pytest.raises(FloatingPointError, match="the weights were not touched"):
        Trainer(tiny(), reward=contrast).train()
    weights = load_file(tmp_path/"run/final"/LORA_FILE)
    assert all(weight.isfinite().all() for weight in weights.values())


def test_full_unet_is_trained_and_loads_in_stock_diffusers(tiny):
    from diffusers import StableDiffusionPipeline
    from prdp_nb.models import generate
    config = tiny(adapter="full", learning_rate=1e-4, updates_per_epoch=2)
    trainer = Trainer(config, reward=contrast)
    policy = trainer.learner.policy
    before = [p.clone() for p in policy.reference.parameters()]
    folder = trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.reference.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(before, policy.denoiser.parameters()))
    assert (read_metrics(folder)["kl"] != 0).tolist() == [False, True]
    pipe = StableDiffusionPipeline.from_pretrained(folder/"final", safety_checker=None)
    ours = generate(trainer.learner.pipe, ["a painting of a fox"], [1], 2, 5.0)[0]
    assert pixel_difference(stock_image(pipe, seed=1), ours) <= 1


def test_long_prompts_are_counted_in_one_warning(tiny, tmp_path):
    path = tmp_path/"long.txt"
    long = [f"a painting of a {animal} " + "and a duck "*20 for animal in ("cow", "cat")]
    path.write_text("\n".join(["a painting of a fox", *long]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(tiny(prompts=path, eval_rewards=(), epochs=1), reward=contrast).train()
    said = [str(warning.message) for warning in caught if "tokens" in str(warning.message)]
    assert [message[:21] for message in said] == ["2 of 3 prompts are lo"]


def test_reward_terms_are_logged_by_name(tiny):
    config = tiny(reward="2*colourfulness + 0.5*jpeg_compressibility", eval_rewards=(), epochs=1)
    metrics = read_metrics(Trainer(config).train())
    terms = 2*metrics["reward_mean/Colourfulness"] + 0.5*metrics["reward_mean/JPEGCompressibility"]
    np.testing.assert_allclose(terms, metrics["reward_mean"], rtol=1e-5)


def test_an_existing_run_is_never_overwritten(run, tiny):
    def content(): return {p: p.read_bytes() for p in Path(run[0]).rglob("*") if p.is_file()}
    before = content()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        Trainer(tiny(output_dir=run[0]))
    assert content() == before


def test_the_plain_loop_and_the_trainer_end_at_the_same_bits(prompt_file, tmp_path):
    """Algorithm 1 as chapter 07 has it, and with a run folder, threads and commands around it, on
    the embedded model."""
    c = Config(model="emoji", prompts=prompt_file, output_dir=tmp_path/"run", epochs=3,
               prompts_per_epoch=2, images_per_prompt=3, num_inference_steps=3,
               updates_per_epoch=2, cell_fraction=0.5, batch_size=6, chunk_size=5,
               learning_rate=1e-2, kl_weight=30.0, reward="colourfulness",
               eval_images_per_prompt=1, eval_rewards=(), seed=7)
    trainer = Trainer(c)
    metrics = read_metrics(trainer.train())
    pipe = load_pipeline(c.model)
    policy = make_policy(pipe, c.num_inference_steps, c.guidance_scale, c.adapter, c.lora_rank,
                         c.seed)
    reward = partial(compute_rewards, as_reward(c.reward))
    world = PipelineWorld(pipe, load_prompts(c.prompts), reward, c.batch_size)
    names = ("epochs", "prompts_per_epoch", "images_per_prompt", "learning_rate",
             "updates_per_epoch", "seed", "batch_size", "chunk_size", "cell_fraction")
    settings = {name: getattr(c, name) for name in names}
    rows = list(train(policy, world, c.make_objective(), **settings))
    weights = trainable_parameters(policy)
    for ours, theirs in zip(trainer.learner.weights, weights, strict=True):
        assert torch.equal(ours, theirs)
    for name in rows[0]: assert metrics[name].tolist() == [row[name] for row in rows]
    assert metrics["kl"].iloc[-1] != 0 and metrics["clip_fraction"].max() > 0


def test_the_curve_is_less_the_base_where_that_is_known_on_all_prompts(tiny, tmp_path):
    "With a learning rate of nearly 0 the model stays its base; then only noise is left of a curve."
    def by_prompt(images, prompts): return [float(len(prompt)) for prompt in prompts]
    known = Trainer(tiny(epochs=3, learning_rate=1e-12), reward=by_prompt)
    known.train()
    gained = read_metrics(tmp_path/"run").reward_mean - base_means(known)
    assert len(gained) == 3 and gained.abs().max() < 1e-6
    assert read_metrics(tmp_path/"run").reward_mean.nunique() > 1 # epochs draw other prompts
    few = tmp_path/"few.txt"
    few.write_text("a painting of a fox\n")
    other = Trainer(tiny(output_dir=str(tmp_path/"other"), eval_prompts=str(few)),
                    reward=by_prompt)
    other.train()
    assert base_means(other) is None
