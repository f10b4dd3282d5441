"""Guards 21_runs and 24_training: runs that are interrupted.

They are killed at random moments, run out of disk, find damaged checkpoints or a reward that fails.
Each goes on to the very bits of the run that was left alone. `PRDP_KILLS=100 pytest
tests/test_resume.py` kills a hundred times instead of four, 40 times while something is saved and
10 times between a rename and the deletion, and tries every file operation instead of some;
`PRDP_SEED` draws other moments."""
import csv
import errno
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forked import FORKS
from prdp_nb import algorithm, scoring, training
from prdp_nb.algorithm import draw_prompts
from prdp_nb.finetuning import load_finetuned
from prdp_nb.models import encode_prompts, latent_shape
from prdp_nb.rewards import Colourfulness, RewardError
from prdp_nb.commands import sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.policies import trainable_parameters
from prdp_nb.runs import (
    damage, epoch_of, newest_intact, read_metrics, run_lock, saved_checkpoints)
from prdp_nb.training import Trainer, check_run, restore, run_epoch

pytestmark = pytest.mark.usefixtures("quick_pictures")

TINY = dict(
    epochs=4, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, updates_per_epoch=2,
    cell_fraction=0.5, learning_rate=1e-2, reward="colourfulness", eval_images_per_prompt=1,
    eval_rewards=(), save_every=1, keep_checkpoints=2, reward_retries=0)
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def tiny(tiny_model, prompt_file):
    "Makes configurations of runs of seconds."
    given = TINY | dict(model=str(tiny_model), prompts=str(prompt_file))
    return lambda folder, **fields: Config(**(given | dict(output_dir=str(folder)) | fields))


def rows(path):
    found = csv.DictReader(path.read_text().splitlines())
    return [{**row, "seconds": "", "experiment": ""} for row in found]


def outcome(run):
    "All that must not depend on interruptions, to the bit; the time and the folder's name may."
    state = torch.load(saved_checkpoints(run)[-1]/"training_state.pt", weights_only=True)
    moments = [value.tolist() for moments in state["optimizer"]["state"].values()
               for value in moments.values()]
    weights = {str(path.relative_to(run)): path.read_bytes()
               for path in sorted(run.glob("final/**/*.safetensors"))}
    return dict(weights=weights, metrics=rows(run/"metrics.csv"), moments=moments,
                evaluation=rows(run/"evaluation.csv"), memory=repr(state["objective"]))


def same(run, other):
    "Do two runs agree in everything? Says in what they do not."
    ours, theirs = outcome(run), outcome(other)
    return [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny):
    "The run that nobody interrupts."
    return Trainer(tiny(tmp_path_factory.mktemp("run")/"straight")).train()


def breaks(times, error=RuntimeError("the service is down")):
    "The colourfulness reward raises from its call number `times` on."
    score, calls = Colourfulness.__call__, []
    def colourfulness(self, images, prompts):
        calls.append(len(images))
        if len(calls) >= times: raise error
        return score(self, images, prompts)
    return patch.object(Colourfulness, "__call__", colourfulness)


def interrupted(config, epochs_before=2, error=RuntimeError("the service is down")):
    """The folder of a run whose reward raises in the middle; noise, the first images and the base
    are scored before the first epoch."""
    with breaks(4 + epochs_before, error), pytest.raises((RewardError, KeyboardInterrupt)):
        Trainer(config).train()
    return Path(config.output_dir)


@pytest.fixture(scope="module")
def broken_once(tmp_path_factory, tiny):
    return interrupted(tiny(tmp_path_factory.mktemp("run")/"broken"))


@pytest.fixture
def broken(broken_once, tmp_path):
    "A run with two checkpoints whose reward failed in epoch 3."
    return shutil.copytree(broken_once, tmp_path/"run")


# Killed


KILLS = int(os.environ.get("PRDP_KILLS", 4))
WINDOW = 0.05 # seconds for which a run rests between a rename and the deletion


def train_in_child(config):
    "A run, begun or gone on with, in a process of its own."
    folder, delete = Path(config.output_dir), shutil.rmtree
    os.environ["TQDM_DISABLE"] = "1"
    sys.stdout = sys.stderr = open(os.devnull, "w")
    torch.set_num_threads(1)
    def rest_and_delete(path, *given, **named):
        if Path(path).name == ".removing" and Path(path).exists(): time.sleep(WINDOW)
        delete(path, *given, **named)
    shutil.rmtree = rest_and_delete
    arguments = ["--resume", str(folder)] if (folder/"config.yaml").exists() else flags(config)
    sys.exit(train_command(arguments))


def flags(config):
    given = {name: value if isinstance(value, tuple) else (value,)
             for name, value in vars(config).items() if value is not None}
    return [part for name, values in given.items() for part in (f"--{name}", *map(str, values))]


def kill_some_time(process, folder, draw, kind, seconds):
    """SIGKILL a run at a random moment of the `seconds` that it takes, while it saves something, or
    between a rename and the deletion. Where it happened; empty if the run had ended."""
    until, patience = time.monotonic() + draw.uniform(0, seconds), time.monotonic() + 60
    window = dict(saving=folder/".saving", renamed=folder/".removing").get(kind)
    passed, before = draw.randrange(2 if kind == "renamed" else 3), False # a run deletes twice
    while process.is_alive() and time.monotonic() < (patience if window else until):
        now = bool(window) and window.exists()
        if now and not before:
            if passed == 0:
                time.sleep(draw.uniform(0, 0.02 if kind == "saving" else WINDOW/2))
                break
            passed -= 1
        before = now
        time.sleep(0.0005)
    if not process.is_alive(): return ""
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if (folder/".removing").exists(): return "renamed"
    return "saving" if (folder/".saving").exists() else "anywhere"


def intact(folder):
    return [epoch_of(path) for path in saved_checkpoints(folder) if not damage(path)]


def test_runs_survive_kills_at_random_moments(straight, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    draw, landed, number = random.Random(int(os.environ.get("PRDP_SEED", 0))), [], 0
    wanted = dict(saving=-(-4*KILLS//10), renamed=-(-KILLS//10))
    def start(folder, work=train_in_child):
        process = FORKS.Process(target=work, args=(tiny(folder),))
        process.start()
        return process
    def enough(): return len(landed) >= KILLS and all(
        landed.count(kind) >= count for kind, count in wanted.items())
    start(tmp_path, print).join() # until then the imports take their time
    began = time.monotonic()
    whole = start(tmp_path/"whole")
    whole.join()
    assert whole.exitcode == 0 and same(tmp_path/"whole", straight)
    seconds = time.monotonic() - began
    while not enough():
        number += 1
        folder, attempts, kept, where = tmp_path/f"run{number}", 0, [], "anywhere"
        while where: # up to four times, then it may finish
            process = start(folder)
            attempts += 1
            while not (folder/"config.yaml").exists() and process.is_alive(): time.sleep(0.001)
            missing = [kind for kind, count in wanted.items() if landed.count(kind) < count]
            spare = KILLS - len(landed) > sum(wanted[kind] - landed.count(kind) for kind in missing)
            kind = draw.choice(missing + ["anywhere"]*spare or ["anywhere"])
            done = attempts == 5 or enough()
            where = "" if done else kill_some_time(process, folder, draw, kind, seconds)
            if where: landed.append(where)
            assert max(intact(folder), default=0) >= max(kept, default=0), "a checkpoint is lost"
            kept = intact(folder)
        process.join()
        assert process.exitcode == 0, f"kill {len(landed)} of {folder} was not survived"
        assert same(folder, straight)
        assert not any(damage(path) for path in saved_checkpoints(folder))
        shutil.rmtree(folder)
    found = {kind: landed.count(kind) for kind in ("saving", "renamed", "anywhere")}
    print(f"{len(landed)} kills, {found}, {number} runs")


# Gone on with


OTHERS = {"ddpo": dict(objective="ddpo"), "dpok offline": dict(objective="dpok", online=False),
          "full": dict(adapter="full", learning_rate=1e-4)}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_that_went_on_is_the_run_that_was_left_alone(name, tiny, tmp_path):
    fields = OTHERS[name] | dict(epochs=3)
    left_alone = Trainer(tiny(tmp_path/"straight", **fields)).train()
    run = interrupted(tiny(tmp_path/"run", **fields))
    assert [path.name for path in saved_checkpoints(run)] == ["epoch_0001", "epoch_0002"]
    Trainer.resume(run).train()
    assert same(run, left_alone)


def test_an_interruption_between_checkpoints_loses_no_epoch(straight, tiny, tmp_path):
    run = interrupted(tiny(tmp_path/"run", save_every=100), error=KeyboardInterrupt())
    assert [path.name for path in saved_checkpoints(run)] == ["epoch_0002"]
    Trainer.resume(run, save_every=1).train()
    assert same(run, straight)


def test_the_adapter_that_is_resumed_is_the_one_that_acts_and_learns(tiny, tmp_path):
    # the attention of the embedded model has several places to look at, so every matrix learns
    run = interrupted(tiny(tmp_path/"run", model="emoji"))
    trainer = Trainer.resume(run)
    checkpoint = saved_checkpoints(run)[-1]
    restore(trainer, checkpoint)
    saved, trained = load_file(checkpoint/LORA), trainable_parameters(trainer.learner.policy)
    stepped = trainer.learner.optimizer.param_groups[0]["params"]
    assert len(saved) == len(trained)
    assert {p.data_ptr() for p in trained} == {p.data_ptr() for p in stepped}
    rollout = trainer.collector.sample(trainer.collector.prompts[:2], epoch=2)
    assert (rollout.log_probs != rollout.log_probs_ref).any()
    stock = load_finetuned(checkpoint)
    noise = torch.randn(1, *latent_shape(stock), generator=torch.Generator().manual_seed(0))
    embeds = encode_prompts(stock, ["a painting of a fox"])
    pipes = trainer.learner.pipe, stock
    with torch.no_grad(): ours, theirs = (pipe.unet(noise, 500, **embeds).sample for pipe in pipes)
    torch.testing.assert_close(ours, theirs)
    before = [p.detach().clone() for p in trained]
    run_epoch(trainer, 2)
    assert all((p != b).any() for p, b in zip(trained, before))


def test_the_adapter_must_not_be_switched_off(broken):
    trainer = Trainer.resume(broken)
    trainer.learner.pipe.unet.disable_adapters()
    with pytest.raises(ValueError, match="is its adapter switched off?"):
        restore(trainer, saved_checkpoints(broken)[-1])


def test_a_damaged_checkpoint_is_passed_over(straight, broken):
    newest = saved_checkpoints(broken)[-1]
    for name in ("checksums.json", "metrics.csv", LORA, "training_state.pt"):
        whole = (newest/name).read_bytes()
        (newest/name).write_bytes(whole[:-7])
        with pytest.warns(UserWarning, match=f"epoch_0002 is damaged \\({name} is "):
            assert newest_intact(broken).name == "epoch_0001"
        if name != "training_state.pt": (newest/name).write_bytes(whole)
    with pytest.warns(UserWarning, match="passed over for the one before it"):
        Trainer.resume(broken).train()
    assert same(broken, straight)


def test_what_another_attempt_left_behind_is_no_hindrance(straight, broken):
    for name in (".saving", ".removing"):
        (broken/name).mkdir()
        (broken/name/LORA).write_bytes(b"half a fi")
    (broken/".config.yaml.part").write_text("model: em")
    with open(broken/"metrics.csv", "a") as file: file.write("3,12,0.5,0.")
    (broken/"before.safetensors").write_bytes(b"torn")
    Trainer.resume(broken).train()
    assert same(broken, straight)


def test_the_measurement_before_is_not_taken_twice(broken, monkeypatch):
    titles, evaluate = [], scoring.evaluate
    def noted(*arguments, title="", **options):
        titles.append(title)
        return evaluate(*arguments, **options)
    monkeypatch.setattr(scoring, "evaluate", noted)
    Trainer.resume(broken).train()
    Trainer.resume(broken, guidance_scale=3.0).train()
    assert titles == ["evaluating after", "evaluating before", "evaluating after"]


# What a run that goes on may not be


def test_a_configuration_that_differs_is_refused_by_field(broken, tiny_model, tmp_path, capsys):
    def refusal(*arguments):
        capsys.readouterr()
        assert train_command(["--resume", str(broken), *arguments]) == 1
        return capsys.readouterr().err
    said = refusal("--preset", "emoji_small", "--model", str(tiny_model),
                   "--reward", "colourfulness", "--objective", "prdp")
    for part in ("epochs 80 (the run has 4)", "kl_weight 1.0 (the run has 2.0)",
                 "to change it on purpose, name it:", "--epochs 80"): assert part in said
    assert "images_per_prompt 8 (the run has 2)" in said and "objective" not in said
    assert "cannot change lora_rank 4 (the run has 8)" in refusal("--lora_rank", "4")
    assert "stays in its folder" in refusal("--output_dir", str(tmp_path/"other"))
    assert "epochs must be at least 2, which the run has done, not 1" in refusal("--epochs", "1")
    text = (broken/"config.yaml").read_text()
    (broken/"config.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    assert "seed 5 (the run has 0)" in refusal()
    (broken/"config.yaml").write_text(text)
    assert read_metrics(broken)["epoch"].tolist() == [1, 2]


def test_a_field_that_is_named_changes(straight, tiny, tmp_path):
    run = interrupted(tiny(tmp_path/"run", epochs=3))
    assert train_command(["--resume", str(run), "--epochs", "4"]) == 0
    assert same(run, straight) and Config.load(run/"config.yaml").epochs == 4
    assert train_command(["--resume", str(run), "--epochs", "5", "--learning_rate", "0.5"]) == 0
    state = torch.load(run/"checkpoints/epoch_0005/training_state.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.5 and not same(run, straight)


@pytest.mark.parametrize("what", ["missing", "empty", "no run"])
def test_what_is_no_run_cannot_go_on(what, tmp_path, capsys):
    folder = tmp_path/what
    if what != "missing": folder.mkdir()
    if what == "no run": (folder/"notes.txt").touch()
    assert train_command(["--resume", str(folder)]) == 1
    refusal = f"{str(folder)!r} is not a run folder that can be resumed: expected config.yaml"
    assert refusal in capsys.readouterr().err


def hold(folder, ready, done):
    with run_lock(folder):
        ready.set()
        done.wait(60)


def test_two_runs_on_one_folder(broken):
    ready, done = FORKS.Event(), FORKS.Event()
    other = FORKS.Process(target=hold, args=(broken, ready, done))
    other.start()
    assert ready.wait(60)
    def files(): return {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    before = files()
    with pytest.raises(BlockingIOError, match=f"another run, process {other.pid}, is at work in"):
        Trainer.resume(broken).train()
    assert files() == before
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with run_lock(broken): pass # the lock of a dead process is none


def test_two_new_runs_at_once(tiny, tmp_path):
    first, second = (Trainer(tiny(tmp_path/"run", epochs=1)) for _ in range(2))
    with run_lock(tmp_path/"run"):
        with pytest.raises(BlockingIOError, match="is at work in"): first.train()
    first.train()
    advice = (r"choose another one \(--output_dir\), go on with the run in it "
              r"\(--resume .*run\), or delete it")
    with pytest.raises(FileExistsError, match=advice): second.train()


# The disk is full


@pytest.mark.parametrize("where", ["torch.save", "prdp_nb.runs.flush"])
def test_a_full_disk_leaves_the_checkpoint_before(where, straight, broken, monkeypatch, capsys):
    module, _, name = where.rpartition(".")
    real, full, record = getattr(sys.modules[module], name), [], training.record
    def write(*arguments, **options):
        if full: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)
    def fills_up(self, row, pictures):
        full.append(row["epoch"])
        record(self, row, pictures)
    monkeypatch.setattr(where, write)
    monkeypatch.setattr(training, "record", fills_up)
    advice = (r"checkpoints/epoch_0003 could not be saved \(.*No space left on device"
              r".*what was saved before is intact. Make room in")
    with pytest.raises(OSError, match=advice): Trainer.resume(broken).train()
    assert "stopped by OSError after 3 of 4 epochs" in capsys.readouterr().out
    found = [(path.name, damage(path)) for path in saved_checkpoints(broken)]
    assert found == [("epoch_0001", ""), ("epoch_0002", "")]
    assert not (broken/".saving").exists()
    monkeypatch.undo()
    Trainer.resume(broken).train()
    assert same(broken, straight)


def some(numbers):
    "All of them where it was asked for, else a few."
    return numbers if KILLS >= 100 else numbers[::len(numbers)//3]


def stopped_with_a_line(run, capsys):
    """A run went on until a file operation failed: one line says it, and the checkpoints of before
    are there. Then it goes on to the end."""
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prdp_")]
    assert len(said) == 1 and said[0].startswith("prdp_train: error: "), said
    assert {1, 2} <= set(intact(run)) or max(intact(run)) > 2
    if (run/"final").exists(): assert damage(run/"final") == ""
    assert train_command(["--resume", str(run)]) == 0
    assert not any((run/name).exists() for name in (".saving", ".removing", ".final.old"))


@pytest.mark.parametrize("number", some([*range(1, 12)]))
def test_a_rename_that_fails_anywhere_in_a_run_stops_it_and_loses_nothing(
        number, straight, broken, monkeypatch, capsys):
    replace, calls = os.replace, []
    def refused(source, target, **named):
        if broken in Path(target).parents: calls.append(target)
        if len(calls) == number and calls[-1] == target:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        return replace(source, target, **named)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refused)
        assert train_command(["--resume", str(broken)]) == 1
    stopped_with_a_line(broken, capsys)
    assert same(broken, straight)


@pytest.mark.skipif(os.name == "nt", reason="has no such limit")
@pytest.mark.parametrize("size", some([0, 10, 100, 1000, 2000, 5000, 20_000, 50_000, 100_000]))
def test_files_that_cannot_grow_stop_a_run_and_lose_nothing(size, straight, broken, capsys):
    "As on a full disk, at whatever is written: every file ends at `size` bytes."
    import resource
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try: status = train_command(["--resume", str(broken)])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    stopped_with_a_line(broken, capsys)
    assert same(broken, straight)


def read_only(monkeypatch, folder):
    "Nothing below the folder can be written, also for root."
    def within(path): return not isinstance(path, int) and folder in (
        Path(path).absolute(), *Path(path).absolute().parents)
    def refusing(real, writes):
        def operation(path, *given, **named):
            if within(path) and writes(*given, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *given, **named)
        return operation
    for name in ("mkdir", "unlink", "rmdir", "replace", "remove", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), lambda *_, **__: True))
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(os, "open", refusing(os.open, lambda given, *_, **__: given & flags))
    opens = refusing(open, lambda mode="r", *_, **__: set(mode) & set("wax+"))
    monkeypatch.setattr("builtins.open", opens)
    monkeypatch.setattr("io.open", opens)


def test_a_run_in_a_folder_that_cannot_be_written_can_be_used_and_not_gone_on_with(
        straight, broken, tmp_path, monkeypatch, capsys):
    files = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        read_only(patched, broken)
        image = tmp_path/"fox.png"
        assert sample_command([str(broken), "a fox", "--output", str(image)]) == 0
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert train_command(["--resume", str(broken)]) == 1
            assert train_command([*flags(Config(output_dir=str(broken/"new")))]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prdp_")]
    assert len(said) == 2 and all("Read-only file system" in line for line in said)
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == files
    assert train_command(["--resume", str(broken)]) == 0
    assert same(broken, straight)


# The reward fails


@pytest.fixture
def no_wait(monkeypatch):
    waits = []
    monkeypatch.setattr(scoring, "RETRY_SECONDS", 1.0)
    class Unset:
        "An event that nobody sets, and nobody waits for."
        def is_set(self): return False
        def set(self): pass
        def wait(self, seconds): waits.append(seconds)
    monkeypatch.setattr(scoring, "Event", Unset)
    return waits


def fails_on(calls, error):
    "The colourfulness reward, which raises in the calls of these numbers, counted from 1."
    from prdp_nb.rewards import colourfulness as score
    count = []
    def colourfulness(images, prompts):
        count.append(prompts)
        if len(count) in calls: raise error
        return [score(image) for image in images]
    colourfulness.calls = count
    return colourfulness


def test_a_reward_that_comes_back_changes_nothing(straight, tiny, tmp_path, no_wait):
    # the base, twice the first epoch, the third
    reward = fails_on({3, 5, 6, 9}, TimeoutError("no answer"))
    warning = r"reward colourfulness failed \(TimeoutError: no answer\); retry 2 of 2 in 2 s"
    with pytest.warns(UserWarning, match=warning):
        run = Trainer(tiny(tmp_path/"run", reward_retries=2), reward=reward).train()
    assert no_wait == [1, 1, 2, 1] and same(run, straight)


def test_a_reward_that_stays_away_stops_the_run(tiny, tmp_path, no_wait):
    reward = fails_on(range(6, 99), TimeoutError("no answer"))
    error = ("^epoch 3: reward colourfulness raised TimeoutError: no answer; it was asked about "
             "4 images, image 0 of prompt 'a painting of a")
    with pytest.raises(RewardError, match=error):
        Trainer(tiny(tmp_path/"run", reward_retries=3), reward=reward).train()
    assert no_wait == [1, 2, 4]
    saved = [path.name for path in saved_checkpoints(tmp_path/"run")]
    assert saved == ["epoch_0001", "epoch_0002"]


def test_prompts_that_cannot_be_scored_are_left_out(tiny, tmp_path, monkeypatch):
    def picky(images, prompts):
        few = len(images) <= 4 # an evaluation has more
        if picky.on and few and "a painting of a fox" in prompts: raise ValueError("no foxes")
        return [float(np.asarray(image).std()) for image in images]
    picky.on = False
    config = tiny(tmp_path/"run", on_reward_error="skip_prompt", eval_images_per_prompt=3)
    trainer = Trainer(config, reward=picky)
    check_run(trainer)
    picky.on = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monkeypatch.setattr(training, "check_run", lambda trainer: None)
        run = trainer.train()
    queries = np.diff(read_metrics(run)["reward_queries"], prepend=0).tolist()
    epochs = [draw_prompts(trainer.collector.prompts, 2, 0, epoch) for epoch in range(4)]
    assert queries == [2 if "a painting of a fox" in prompts else 4 for prompts in epochs]
    assert 2 in queries
    said = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert len(said) == queries.count(2)
    assert said[0].startswith("the prompt 'a painting of a fox' is left out of this epoch: "
                              "reward picky raised ValueError: no foxes")


def test_a_score_that_is_no_number_is_named_with_its_epoch_and_prompt(tiny, tmp_path):
    scores = iter([[0., 1.], [0., 1.], [0., 1., 2.], [0., 1., 2., 3.], [0., 1., 2., float("nan")]])
    def own(images, prompts): return next(scores)
    error = (r"^epoch 2: reward own gave nan to image 3 "
             r"\(prompt 'a painting of a (fox|duck|cow)'\)")
    with pytest.raises(RewardError, match=error):
        Trainer(tiny(tmp_path/"run"), reward=own).train()


# Numbers that are not finite


def stops(trainer, match):
    with pytest.raises(FloatingPointError, match=match): trainer.train()
    run = trainer.folder
    newest = saved_checkpoints(run)[-1]
    assert (newest.name, damage(newest)) == ("epoch_0002", "")
    assert all(w.isfinite().all() for w in load_file(newest/LORA).values())


def test_a_loss_that_is_not_finite_stops_the_run(broken, monkeypatch):
    trainer = Trainer.resume(broken)
    coefficients = algorithm.coefficients
    def spoiled(loss_fn, log_probs):
        loss, weights = coefficients(loss_fn, log_probs)
        return (loss*float("nan") if trainer.progress.epochs == 2 else loss), weights
    monkeypatch.setattr(algorithm, "coefficients", spoiled)
    stops(trainer, "^epoch 3: the loss is nan, of finite log-probabilities; the weights were not "
                   "touched")


def test_a_slope_that_is_not_finite_is_named(broken, monkeypatch):
    trainer = Trainer.resume(broken)
    coefficients = algorithm.coefficients
    def spoiled(loss_fn, log_probs):
        loss, weights = coefficients(loss_fn, log_probs)
        if trainer.progress.epochs == 2: weights[1, 0, 1] = float("inf")
        return loss, weights
    monkeypatch.setattr(algorithm, "coefficients", spoiled)
    second = draw_prompts(trainer.collector.prompts, 2, 0, 2)[1]
    stops(trainer, f"^epoch 3: the slope of the loss is inf for the prompt '{second}', image 1 of "
                   "2, step 2 of 2; the weights were not touched")


def test_a_gradient_that_is_not_finite_is_traced_to_its_prompt_and_step(broken, monkeypatch):
    trainer = Trainer.resume(broken, cell_fraction=1.0)
    backward = algorithm.backward_log_probs
    def spoiled(policy, rollout, weights, **options):
        spent = backward(policy, rollout, weights, **options)
        if trainer.progress.epochs == 2 and weights[0, :, 1].any():
            trainable_parameters(policy)[0].grad[0] = float("nan")
        return spent
    monkeypatch.setattr(algorithm, "backward_log_probs", spoiled)
    first = draw_prompts(trainer.collector.prompts, 2, 0, 2)[0]
    stops(trainer, "^epoch 3: the gradient's norm is nan; the weights were not touched.*; it comes "
                   f"from the prompt '{first}', step 2 of 2")


def test_latents_that_are_not_finite_stop_the_run(broken, monkeypatch):
    trainer = Trainer.resume(broken)
    def ruin():
        with torch.no_grad():
            for p in trainable_parameters(trainer.learner.policy): p.fill_(float("nan"))
    sample = trainer.collector.sample
    def spoiled(prompts, epoch, *rest, **named):
        if trainer.progress.epochs == 2: ruin()
        return sample(prompts, epoch, *rest, **named)
    monkeypatch.setattr(trainer.collector, "sample", spoiled)
    stops(trainer, r"^epoch 3: latents became non-finite at step 1 of 2 \(timestep \d+\) for the "
                   "prompt 'a painting of a")


def test_weights_that_are_not_finite_are_not_saved_as_a_checkpoint(broken, monkeypatch):
    trainer = Trainer.resume(broken)
    record = training.record
    def spoiled(trainer, row, images):
        if row["epoch"] == 3:
            with torch.no_grad(): trainer.learner.weights[0].fill_(float("nan"))
        record(trainer, row, images)
    monkeypatch.setattr(training, "record", spoiled)
    stops(trainer, "^epoch 3: the weights are not finite, and were not saved")
    final = load_file(broken/"final"/LORA) # of the time before
    assert all(w.isfinite().all() for w in final.values())


def test_a_spike_of_the_gradient_is_reported_once(tiny, tmp_path, monkeypatch):
    trainer = Trainer(tiny(tmp_path/"run", epochs=7, save_every=100))
    step, norms = algorithm.gradient_step, []
    def spoiled(*given):
        norms.append(step(*given))
        return 1.0 if len(norms) != 13 else 50.0 # the first update of epoch 7
    monkeypatch.setattr(algorithm, "gradient_step", spoiled)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(w.message) for w in caught if "gradient" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("epoch 7: a gradient of norm 50, 50 times the median of the epochs "
                              "before (1)")


def test_random_numbers_of_a_reward_go_on(tiny, tmp_path):
    def noisy(down):
        calls = []
        def colourfulness(images, prompts):
            calls.append(1)
            if len(calls) == down: raise RuntimeError("down")
            return [random.random() + np.random.randn() + torch.rand(1).item() for _ in images]
        return colourfulness
    def seed():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
    seed()
    left_alone = Trainer(tiny(tmp_path/"straight", eval_rewards=()), reward=noisy(0)).train()
    seed()
    config = tiny(tmp_path/"run")
    with pytest.raises(RewardError): Trainer(config, reward=noisy(6)).train()
    seed()
    Trainer.resume(tmp_path/"run", reward=noisy(0)).train()
    assert same(tmp_path/"run", left_alone)


# What an interruption leaves in memory


def test_a_gradient_of_an_interrupted_update_is_not_in_the_next(tiny, tmp_path):
    run = Trainer(tiny(tmp_path/"run", chunk_size=2, epochs=1)).train()
    trainer, calls, backward = Trainer.resume(run, epochs=4), [], torch.Tensor.backward
    def interrupting(loss):
        calls.append(loss)
        if len(calls) == 2: raise KeyboardInterrupt # the second chunk of an update
        backward(loss)
    with patch.object(torch.Tensor, "backward", interrupting), pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert any(p.grad is not None and p.grad.any() for p in trainer.learner.weights)
    trainer.train()
    assert same(trainer.folder, Trainer(tiny(tmp_path/"whole", chunk_size=2)).train())


def test_what_nobody_reads_any_more_is_saved_all_the_same(tiny, tmp_path):
    def gone(text): # after Ctrl-C
        if "prompts x" not in text: raise BrokenPipeError
    error = KeyboardInterrupt()
    with breaks(6, error), patch("builtins.print", gone), pytest.raises(KeyboardInterrupt):
        Trainer(tiny(tmp_path/"run", save_every=100)).train()
    assert (tmp_path/"run/final"/LORA).exists() and saved_checkpoints(tmp_path/"run")


def test_a_run_goes_on_in_its_own_folder(broken):
    with pytest.raises(ValueError, match="leave out output_dir, or copy the folder first"):
        Trainer.resume(broken, output_dir="elsewhere")


def test_prompts_that_changed_under_their_name_are_said_once(tiny, prompt_file, tmp_path):
    own = tmp_path/"own.txt"
    own.write_text(prompt_file.read_text())
    run = Trainer(tiny(tmp_path/"other", prompts=own, epochs=1)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_run(Trainer.resume(run, epochs=2))
        check_run(Trainer.resume(run, epochs=2, prompts=str(prompt_file))) # on purpose
    own.write_text("a fox\na duck\na cow\na bee\n")
    with pytest.warns(UserWarning, match="prompts have changed since .* from these 4"):
        Trainer.resume(run, epochs=2).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_run(Trainer.resume(run, epochs=3))


def test_the_command_to_go_on_can_be_pasted(tmp_path, tiny, capsys):
    run = Trainer(tiny(tmp_path/"my runs"/"first (old)", epochs=2)).train()
    with pytest.raises(FileExistsError) as refused: Trainer(tiny(run)).train()
    with patch.object(training, "run_epoch", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        Trainer.resume(run, epochs=4).train()
    said = re.search(r"to go on: prdp_train (.*)", "".join(capsys.readouterr())).group(1)
    offered = re.search(r"\((--resume .*?\'?)\), or", str(refused.value)).group(1)
    for command in (said, offered): assert shlex.split(command) == ["--resume", str(run)]
