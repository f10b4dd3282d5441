"""Guards 23_processes and 24_training: two processes against one.

They are the same run, to rounding. One that dies takes the other with it, and the run goes on. They
are forked, or started by `accelerate launch` with the files of configs/, and speak over gloo on the
CPU. As a script this file is what the processes do that share the model."""
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forked import run_pair
from prdp_nb.algorithm import draw_prompts
from prdp_nb.commands import run_command, train_command
from prdp_nb.config import Config
from prdp_nb.policies import trainable_parameters
from prdp_nb.processes import join_ranks
from prdp_nb.runs import read_metrics, saved_checkpoints
from prdp_nb.training import Trainer

TINY = dict(
    epochs=3, prompts_per_epoch=3, images_per_prompt=2, num_inference_steps=3, updates_per_epoch=2,
    kl_weight=30, clip_range=float("inf"), learning_rate=3e-4, batch_size=2, chunk_size=6,
    reward="colourfulness", eval_images_per_prompt=1, eval_rewards=(), save_every=1,
    reward_retries=0)
CONFIGS = Path(__file__).resolve().parents[1]/"configs"
ENV = os.environ | dict(OMP_NUM_THREADS="1", TQDM_DISABLE="1", PYTHONUNBUFFERED="1",
                        ACCELERATE_USE_CPU="true")
START = dict(env=ENV, text=True)
SAYS = START | dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)


COLLECTING = threading.Event() # an epoch, and not a check or an evaluation


def picky(images, prompts):
    "A reward that fails on foxes, but only on those of an epoch."
    if COLLECTING.is_set() and any("fox" in prompt for prompt in prompts):
        raise ValueError("no foxes today")
    return [float(np.asarray(image).std()) for image in images]


def with_epochs(trainer):
    "The trainer, which lets `picky` know when it collects an epoch."
    collect = trainer.collector.collect
    def collecting(*given):
        COLLECTING.set()
        try: return collect(*given)
        finally: COLLECTING.clear()
    trainer.collector.collect = collecting
    return trainer


def contrast(images, prompts):
    return [float(np.asarray(image).std()) for image in images]


RUNS = { # three prompts: the first process gets two of them, the second one
    "full": (contrast, dict(adapter="full", learning_rate=2e-5)),
    "lora": (None, dict(reward="2*colourfulness + 0.1*jpeg_compressibility")),
    "skip": (picky, dict(objective="ddpo_batch", on_reward_error="skip_prompt", epochs=4)),
    "draw": (contrast, dict(objective="dpok", cell_fraction=0.5, updates_per_epoch=1, epochs=1)),
}


def train(name, folder, model, prompts):
    reward, fields = RUNS[name]
    where = dict(model=str(model), prompts=str(prompts), output_dir=str(folder/name))
    trainer = with_epochs(Trainer(Config(**TINY | where | fields), reward=reward))
    trainer.train()
    return trainer


def digest(trainer):
    "A checksum of all that was trained."
    weights = trainable_parameters(trainer.learner.policy)
    content = b"".join(p.detach().numpy().tobytes() for p in weights)
    return hashlib.sha256(content).hexdigest()


def worker(folder, model, prompts):
    "What each of the two processes does: every run, one that goes wrong, and one that is refused."
    digests = {name: digest(train(name, folder, model, prompts)) for name in RUNS}
    common = TINY | dict(model=str(model), prompts=str(prompts))
    def config(name, **more): return Config(**common | dict(output_dir=str(folder/name)) | more)
    straight = Trainer(config("straight", epochs=6)).train()
    status = run_command("prdp_train", with_epochs(Trainer(config("fails"), reward=picky)).train)
    try: Trainer(config("refused", prompts_per_epoch=1))
    except ValueError as error: refusal = str(error)
    found = dict(digests=digests, status=status, refusal=refusal,
                 epochs=len(read_metrics(straight)["epoch"]))
    (folder/f"{join_ranks().rank}.json").write_text(json.dumps(found))


# Two prompts, one for each process. Where cells are drawn, a chunk holds one cell, since which of
# them share a chunk would differ.
SHARDED = {
    "lora": dict(cell_fraction=0.5, chunk_size=1, ema_decay=0.5, learning_rate=1e-4),
    "full": dict(adapter="full", learning_rate=1e-5),
}


def sharded_config(name, folder, prompts):
    """Of the embedded model. In the random one two numbers make a group of GroupNorm, so some
    gradients are nothing but rounding, and AdamW makes them as large as the others."""
    where = dict(prompts=str(prompts), output_dir=str(folder/name))
    small = dict(prompts_per_epoch=2, num_inference_steps=2, updates_per_epoch=1, save_every=2)
    return Config(**TINY | where | small | SHARDED[name])


def sharded_worker(folder, prompts):
    """What each of two processes does that share the model: two runs, one of them as ZeRO-2 would,
    the end of another, and one that goes wrong in one process."""
    for name in SHARDED:
        os.environ["FSDP_RESHARD_AFTER_FORWARD"] = {"lora": "true", "full": "false"}[name]
        trainer = Trainer(sharded_config(name, folder, prompts), reward=contrast)
        trainer.train()
        weights, ranks = trainable_parameters(trainer.learner.policy), trainer.ranks
        held, total = (sum(p.numel() for p in some)
                       for some in ([p.to_local() for p in weights], weights))
        print(f"{name}: {type(ranks).__name__}, keep {ranks.keep}, {held} of {total}")
    Trainer.resume(folder/"began alone"/"lora", reward=contrast).train()
    failing = with_epochs(Trainer(sharded_config("lora", folder/"fails", prompts), reward=picky))
    sys.exit(run_command("prdp_train", failing.train))


def launch(config, *arguments, machine=0, port=0):
    "The command line of configs/CONFIG.yaml on one machine, for two processes in all."
    options = dict(config_file=CONFIGS/f"{config}.yaml", num_processes=2, machine_rank=machine,
                   main_process_ip="127.0.0.1", main_process_port=port)
    flags = [f"--{name}={value}" for name, value in options.items()]
    accelerate = Path(sys.executable).with_name("accelerate")
    return [accelerate, "launch", *flags, "--no_python", *map(str, arguments)]


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_model, prompt_file):
    "The runs of two processes, and what both said."
    folder = tmp_path_factory.mktemp("two")
    pair = run_pair(worker, folder, tiny_model, prompt_file, environment=ENV,
                    folder=tmp_path_factory.mktemp("said"))
    assert [one.returncode for one in pair] == [0, 0], pair[0].stderr[-4000:]
    return folder, *("".join(getattr(one, name) for one in pair) for name in ("stdout", "stderr"))


def weights(run, where="final"):
    files = [path for path in sorted((run/where).rglob("*.safetensors"))
             if path.parent.name in (Path(where).name, "unet")]
    found = [value for file in files for _, value in sorted(load_file(file).items())]
    return torch.cat([value.flatten().double() for value in found])


def assert_close(run, expected, rtol, kl_atol=0):
    "The same numbers in `metrics.csv`, but for the time."
    numbers, wanted = read_metrics(run), read_metrics(expected)
    assert list(numbers) == list(wanted)
    for column in set(wanted) - {"seconds"}:
        np.testing.assert_allclose(numbers[column], wanted[column], rtol=rtol, err_msg=column,
                                   atol=kl_atol if column == "kl" else 0)


def said_by(two):
    "What each of the two processes wrote in the end."
    return [json.loads((two[0]/f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_learns(name, two, tiny_model, prompt_file, tmp_path):
    """A chunk holds the cells of one prompt, and the second process has one chunk. So both ways add
    the same gradients in the same order, and must end at the same bits. Not so where cells are
    drawn: there the chunks are others."""
    one = train(name, tmp_path, tiny_model, prompt_file).folder
    assert_close(two[0]/name, one, rtol=1e-6)
    if name == "draw": return
    ours, theirs = weights(two[0]/name), weights(one)
    first = weights(one, "checkpoints/epoch_0001")
    assert torch.equal(ours, theirs) and (first - theirs).norm() > 1e-4*theirs.norm()
    if name != "skip": return
    assert set(np.diff(read_metrics(one)["reward_queries"])) == {4}
    # and in some epoch the second process has nothing at all to learn from
    animals = prompt_file.read_text().splitlines()
    last = [draw_prompts(animals, 3, 0, epoch)[-1] for epoch in range(4)]
    assert "a painting of a fox" in last


def test_both_processes_hold_the_same_weights(two):
    first, second = (said["digests"] for said in said_by(two))
    assert first == second and len(set(first.values())) == len(RUNS)


def test_a_failure_in_one_process_ends_both_and_is_said_once(two):
    folder, out, err = two
    assert [said["status"] for said in said_by(two)] == [1, 1]
    error = ("prdp_train: error: epoch 1: reward picky raised ValueError: no foxes today; it was "
             "asked about 2 images, image 0 of prompt 'a painting of a fox'")
    assert err.count(error) == 1 and err.count("prdp_train: error") == 1
    assert out.count("stopped by RewardError after 0 of 3 epochs") == 1
    assert weights(folder/"fails").isfinite().all()


def test_more_processes_than_prompts_are_refused(two):
    refusal = "prompts_per_epoch must be at least 2, one for each process, not 1"
    assert [said["refusal"] for said in said_by(two)] == [refusal, refusal]
    assert not (two[0]/"refused").exists()


def process_of(rank, launcher):
    "The process number of one of the two."
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path/"stat").read_text().rpartition(")")[2].split()[1])
            settings = (path/"environ").read_bytes().split(b"\0")
        except (OSError, ValueError): continue
        if parent == launcher and f"RANK={rank}".encode() in settings: return int(path.name)


def as_flags(fields):
    "The command line of `prdp_train` that names these fields."
    given = {name: value if isinstance(value, tuple) else (value,)
             for name, value in fields.items()}
    return [part for name, values in given.items() for part in (f"--{name}", *map(str, values))]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_is_killed_ends_the_other_and_the_run_goes_on_on_two_machines(
        two, tiny_model, prompt_file, tmp_path):
    run, command = tmp_path/"straight", Path(sys.executable).with_name("prdp_train")
    fields = TINY | dict(model=tiny_model, prompts=prompt_file, output_dir=run, epochs=6)
    launcher = subprocess.Popen(launch("multi_gpu", command, *as_flags(fields)),
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **START)
    while launcher.poll() is None and not (run/"checkpoints/epoch_0002").exists(): time.sleep(0.002)
    first, second = (process_of(rank, launcher.pid) for rank in range(2))
    os.kill(second, signal.SIGKILL)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and not Path(f"/proc/{first}").exists(), said
    left = len(saved_checkpoints(run))
    assert 2 <= left < 6
    with socket.create_server(("127.0.0.1", 0)) as free: port = free.getsockname()[1]
    commands = [launch("multi_node", command, "--resume", run, machine=machine, port=port)
                for machine in range(2)]
    machines = [subprocess.Popen(command, **SAYS) for command in commands]
    said, errors = zip(*(machine.communicate(timeout=300) for machine in machines))
    assert [machine.returncode for machine in machines] == [0, 0], errors
    assert said[0].count(f"going on after epoch {left}") == 1 and "going on" not in said[1]
    assert torch.equal(weights(run), weights(two[0]/"straight"))
    state = torch.load(saved_checkpoints(run)[-1]/"training_state.pt", weights_only=True)
    assert len(state["random"]) == 2
    ours, theirs = (read_metrics(folder) for folder in (run, two[0]/"straight"))
    for column in set(ours) - {"seconds"}: assert ours[column].tolist() == theirs[column].tolist()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The runs of one process, and then of two that share the model, with what they said; one run
    begins with the first and ends with the second."""
    folder = tmp_path_factory.mktemp("sharded")
    prompts = folder/"two.txt"
    prompts.write_text("a painting of a fox\na painting of a duck\n")
    for name in SHARDED:
        Trainer(sharded_config(name, folder/"one", prompts), reward=contrast).train()
    shutil.copytree(folder/"one/lora", folder/"began alone/lora")
    shutil.rmtree(folder/"began alone/lora/checkpoints/epoch_0003")
    command = launch("fsdp", sys.executable, __file__, "sharded_worker", folder, prompts)
    done = subprocess.run(command, timeout=600, **SAYS)
    for said in ("lora: Shards, keep False", "full: Shards, keep True"):
        assert said in done.stdout, done.stderr[-4000:]
    return folder, done


def assert_alike(run, expected):
    "The same to rounding: the weights, their average and the numbers of each epoch."
    for where in ("checkpoints/epoch_0003", "final"):
        ours, theirs = weights(run, where), weights(expected, where)
        first = weights(expected, "checkpoints/epoch_0002")
        assert (ours - theirs).norm() < 1e-6*theirs.norm()
        assert (first - theirs).norm() > 1e-5*theirs.norm()
    assert_close(run, expected, rtol=1e-3, kl_atol=1e-3)


def paths_in(folder): return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_that_share_the_model_learn_what_one_learns(name, sharded):
    folder, done = sharded
    assert_alike(folder/name, folder/"one"/name)
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{name}: ")]
    shares = [line.split(", ")[-1].split(" of ") for line in lines]
    assert len(shares) == 2 and sum(int(share) for share, _ in shares) == int(shares[0][1])
    assert paths_in(folder/name) == paths_in(folder/"one"/name)


def test_a_run_goes_on_with_the_model_shared_or_whole(sharded, tmp_path):
    folder, _ = sharded
    assert_alike(folder/"began alone/lora", folder/"one/lora")
    run = shutil.copytree(folder/"lora", tmp_path/"began sharded")
    shutil.rmtree(run/"checkpoints/epoch_0003")
    Trainer.resume(run, reward=contrast).train()
    assert_alike(run, folder/"one/lora")


def test_a_failure_in_one_process_ends_those_that_share_the_model(sharded):
    folder, done = sharded
    assert done.returncode != 0 and "reward picky raised ValueError: no foxes today" in done.stderr
    assert not (folder/"fails/lora/final").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configs(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils import DistributedType
    config = load_config_from_file(str(path))
    sharded = path.stem.startswith("fsdp")
    expected = DistributedType.FSDP if sharded else DistributedType.MULTI_GPU
    assert config.distributed_type == expected
    if sharded:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_reshard_after_forward"] == (path.stem == "fsdp")
    assert config.num_processes == 8*config.num_machines
    assert not config.use_cpu and config.mixed_precision == "no"


def test_deepspeed_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert train_command(["--output_dir", str(tmp_path/"run")]) == 1
    refusal = ("DEEPSPEED is not supported: start it with a file of configs/. What DeepSpeed's "
               "ZeRO-2 shards, fsdp_zero2.yaml shards with torch alone")
    assert refusal in capsys.readouterr().err
    assert not (tmp_path/"run").exists()


if __name__ == "__main__": globals()[sys.argv[1]](*map(Path, sys.argv[2:]))
