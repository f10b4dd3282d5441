"""Guards 21_runs: a run folder keeps what it holds, whatever fails.

Writes are killed before each of their file operations, renames are refused, strangers lie between
the checkpoints, disks know no fsync of a folder, the run's own device and tracker are gone, and its
model is in another place."""
import errno
import os
import shutil
import warnings
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from prdp_nb.commands import evaluate_command, sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.evaluation import evaluate_runs, spaced_checkpoints
from prdp_nb.finetuning import load_finetuned
from prdp_nb.learner import check_base, weight_samples
from prdp_nb.models import load_pipeline
from prdp_nb.runs import (atomic_write, checkpoints, damage, flush, load_checkpoint, newest_intact,
                          read_metrics, saved_checkpoints)
from prdp_nb.training import Trainer

pytestmark = pytest.mark.usefixtures("quick_pictures")

TINY = dict(
    epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, learning_rate=1e-2,
    reward="colourfulness", eval_images_per_prompt=1, eval_rewards=(), save_every=1)


@pytest.fixture
def tiny(tiny_model, prompt_file, tmp_path):
    "Makes configurations of runs of seconds."
    given = TINY | dict(model=str(tiny_model), prompts=str(prompt_file),
                        output_dir=str(tmp_path/"run"))
    return lambda **fields: Config(**(given | fields))


# One folder takes the place of another


class Killed(BaseException):
    "The process ends here."


OPERATIONS = ("replace", "fsync", "mkdir", "unlink", "rmdir", "scandir") # of `os`


def stop_at(number, work, error, operations=OPERATIONS, still=False):
    "Run `work`; its file operation of this number, and with `still` all later ones, raise `error`."
    count = []
    def counted(real):
        def operation(*arguments, **options):
            count.append(real.__name__)
            if len(count) == number or still and len(count) > number: raise error
            return real(*arguments, **options)
        return operation
    with ExitStack() as patches:
        for name in operations:
            patches.enter_context(patch.object(os, name, counted(getattr(os, name))))
        work()


def fill_with(text):
    def fill(part):
        (part/"unet").mkdir()
        for name in ("a.txt", "unet/b.txt"): (part/name).write_text(text)
    return fill


def content(folder):
    assert damage(folder) == ""
    assert (folder/"a.txt").read_text() == (folder/"unet/b.txt").read_text()
    return (folder/"a.txt").read_text()


@pytest.fixture
def run(tmp_path):
    (tmp_path/"checkpoints").mkdir()
    return tmp_path


NAMES = ["final", "checkpoints/epoch_0002"]


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_any_moment_the_old_or_the_new_is_whole_after_the_next_start(name, run):
    number, seen = 0, []
    while True:
        number += 1
        atomic_write(run, name, fill_with("old"))
        try: stop_at(number, lambda: atomic_write(run, name, fill_with("new")), Killed())
        except Killed: pass
        else: break
        newest_intact(run) # the next start
        seen.append(content(run/name))
    assert list(dict.fromkeys(seen)) == ["old", "new"] and number > 12
    assert content(run/name) == "new"
    atomic_write(run, name, fill_with("newer")) # leaves no trace of the kills
    assert {path.name for path in run.iterdir()} == {"checkpoints", name.split("/")[0]}
    assert [path.name for path in (run/name).parent.glob(".*")] == []


@pytest.mark.parametrize("still", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rename_that_is_refused_loses_nothing_and_the_error_says_so(name, still, run):
    for number in (1, 2):
        atomic_write(run, name, fill_with("old"))
        refused = OSError(errno.EACCES, "refused")
        with pytest.raises(OSError, match="what was saved before is intact") as caught:
            stop_at(number, lambda: atomic_write(run, name, fill_with("new")), refused,
                    ["replace"], still)
        told = str(caught.value).partition(" is intact")[2].partition(". Make room")[0]
        kept = told.removeprefix(" in ") or str(run/name)
        assert content(Path(kept)) == "old" # where the message says it is
        newest_intact(run)
        assert content(run/name) == "old"


def test_what_cannot_be_cleared_away_afterwards_is_no_failure(run):
    atomic_write(run, "final", fill_with("old"))
    stop_at(3, lambda: atomic_write(run, "final", fill_with("new")),
            OSError(errno.EACCES, "refused"), ["replace"])
    assert content(run/"final") == "new"
    newest_intact(run)
    assert [path.name for path in run.iterdir()].count(".final.old") == 0
    assert content(run/"final") == "new"


def test_a_file_in_the_place_of_a_folder_is_left_alone(run):
    (run/"final").write_text("notes")
    with pytest.raises(OSError, match="final is a file: move it away"):
        atomic_write(run, "final", fill_with("new"))
    assert (run/"final").read_text() == "notes"


@pytest.mark.parametrize("name", NAMES)
def test_of_a_folder_that_was_moved_and_linked_only_the_link_goes(name, run, tmp_path_factory):
    moved = tmp_path_factory.mktemp("another disk")/"moved"
    atomic_write(run, name, fill_with("old"))
    shutil.move(run/name, moved)
    (run/name).symlink_to(moved)
    for text in ("new", "newer", "newest"):
        atomic_write(run, name, fill_with(text))
        assert content(run/name) == text and not (run/name).is_symlink()
    assert content(moved) == "old"
    assert {path.name for path in run.iterdir()} == {"checkpoints", name.split("/")[0]}


# Strangers in the folder


STRANGERS = ("epoch_0001_backup", ".epoch_0001_backup.old", "epoch_x", "epoch_", "epoch_0002.tmp",
             "old", "epoch_-1", "epoch_٣")


def test_strangers_among_the_checkpoints_are_left_alone(tiny):
    run = Trainer(tiny(keep_checkpoints=1)).train()
    for name in STRANGERS: shutil.copytree(run/"checkpoints/epoch_0002", run/"checkpoints"/name)
    shutil.copytree(run/"final", run/".notes.old")
    (run/"checkpoints/epoch_0007").write_text("a file")
    assert list(checkpoints(run)) == ["epoch_0002", "final"]
    Trainer.resume(run, epochs=4).train()
    assert list(checkpoints(run)) == ["epoch_0004", "final"]
    for name in STRANGERS: assert damage(run/"checkpoints"/name) == ""
    assert damage(run/".notes.old") == ""
    assert (run/"checkpoints/epoch_0007").read_text() == "a file"


def test_checkpoints_are_in_the_order_of_their_numbers(run):
    for epoch in (10000, 999, 9999, 100000): (run/f"checkpoints/epoch_{epoch:04}").mkdir()
    names = [path.name for path in saved_checkpoints(run)]
    assert names == ["epoch_0999", "epoch_9999", "epoch_10000", "epoch_100000"]


# Disks


def test_a_mount_without_fsync_of_folders(run):
    (run/"note.txt").write_text("note")
    def failing(code): return patch("os.fsync", side_effect=OSError(code, os.strerror(code)))
    with failing(errno.EINVAL): flush(run)
    for code, path in ((errno.EIO, run), (errno.ENOSPC, run), (errno.EINVAL, run/"note.txt")):
        with failing(code), pytest.raises(OSError, match=os.strerror(code)): flush(path)


# What is loaded from it


@pytest.mark.parametrize("adapter, learning_rate", [("lora", 1e-2), ("full", 1e-3)])
def test_a_checkpoint_is_evaluated_with_the_average_as_final_is(adapter, learning_rate, tiny):
    config = tiny(ema_decay=0.5, adapter=adapter, learning_rate=learning_rate)
    run = Trainer(config).train()
    def weights(pipe): return list(pipe.unet.state_dict().values())
    last, final = (weights(load_checkpoint(run, name)[1]) for name in ("epoch_0002", "final"))
    raw = weights(load_finetuned(run/"checkpoints/epoch_0002", config.model))
    early = weights(load_checkpoint(run, "epoch_0001")[1])
    assert all(torch.equal(a, b) for a, b in zip(last, final, strict=True))
    for others in (raw, early):
        assert any(not torch.equal(a, b) for a, b in zip(last, others, strict=True))
    tables = [evaluate_runs(run, rewards="colourfulness", checkpoint=name).tuned.tolist()
              for name in ("epoch_0002", "final")]
    assert tables[0] == tables[1]
    assert spaced_checkpoints(run, 8) == ["epoch_0001", "final"] # the last one is `final`


def test_a_run_of_another_machine_is_sampled_here(tiny, tmp_path, capsys):
    run = Trainer(tiny(epochs=1)).train()
    elsewhere = replace(Config.load(run/"config.yaml"), device="cuda:99", log_with="wandb")
    elsewhere.save(run/"config.yaml")
    image, given = tmp_path/"fox.png", [str(run), "a painting of a fox", "--output"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sample_command([*given, str(image), "--device", "cpu"]) == 0
    with pytest.warns(UserWarning, match="'cuda:99' cannot be used here.*the best there is"):
        assert sample_command([*given, str(tmp_path/"again.png")]) == 0
    if not torch.cuda.is_available():
        assert image.read_bytes() == (tmp_path/"again.png").read_bytes()
    assert sample_command([*given, str(image), "--device", "cuda:99"]) == 1
    assert "device 'cuda:99' cannot be used here" in capsys.readouterr().err


# What a run needs is in another place


@pytest.fixture(params=["lora", "full"])
def moved(request, tiny, tmp_path):
    "A run whose model has moved since, where it is now, and another model like it."
    here, there, other = (tmp_path/name for name in ("here", "there", "other"))
    config = tiny(epochs=1, model=str(here), adapter=request.param, device="cpu")
    shutil.copytree(tiny().model, here)
    run = Trainer(config).train()
    here.rename(there)
    pipe = load_pipeline(there)
    [*pipe.text_encoder.parameters()][-1].data += 0.01
    pipe.save_pretrained(other)
    return run, there, other


def test_a_run_whose_model_moved_is_told_where_it_is(moved, tmp_path, capsys):
    run, there, other = moved
    before = (run/"config.yaml").read_bytes(), (run/"metrics.csv").read_bytes()
    commands = {
        "resume": lambda place: train_command(["--resume", str(run), "--epochs", "2", *place]),
        "sample": lambda place: sample_command(
            [str(run), "a painting of a fox", "--output", str(tmp_path/"fox.png"), *place]),
        "evaluate": lambda place: evaluate_command(
            [str(run), "--rewards", "colourfulness", *place])}
    full = Config.load(run/"config.yaml").adapter == "full"
    if full: del commands["sample"] # which needs no base
    for command in commands.values(): assert command([]) == 1
    capsys.readouterr()
    for command in commands.values():
        assert command(["--model", str(other)]) == 1
        said = capsys.readouterr().err
        assert f"the model {str(other)!r} is not the one that the run" in said
        assert "1 of " in said and "the first is text_encoder " in said
    assert before == ((run/"config.yaml").read_bytes(), (run/"metrics.csv").read_bytes())
    for name in ("evaluate", "sample", "resume"):
        if name in commands: assert commands[name](["--model", str(there)]) == 0, name
    assert read_metrics(run).epoch.tolist() == [1, 2]
    assert Config.load(run/"config.yaml").model == str(there) # where it is looked for from now on


def test_another_model_in_the_old_place_is_refused(moved):
    run, there, other = moved
    other.rename(run.parent/"here")
    def evaluation(): evaluate_runs(run, rewards="colourfulness")
    for start in (Trainer.resume(run, epochs=2).train, evaluation):
        with pytest.raises(ValueError, match="is not the one that the run"): start()


def test_half_precision_makes_no_other_model_of_it(tiny, tmp_path):
    run = Trainer(tiny(epochs=1)).train()
    for dtype in (torch.bfloat16, torch.float16):
        check_base("it", weight_samples(load_pipeline(tiny().model, dtype)), run)


def test_a_run_of_another_device_goes_on_here(tiny, capsys):
    run = Trainer(tiny(epochs=1)).train()
    config = replace(Config.load(run/"config.yaml"), device="cuda:99")
    for name in ("config.yaml", "checkpoints/config.yaml"): config.save(run/name)
    assert train_command(["--resume", str(run), "--epochs", "2"]) == 1
    assert "name another one (--device)" in capsys.readouterr().err
    assert train_command(["--resume", str(run), "--epochs", "2", "--device", "cpu"]) == 0
    assert evaluate_command([str(run), "--device", "cpu"]) == 0
