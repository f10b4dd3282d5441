"""Guards 16_comparison and 25_evaluation: evaluations compare like with like.

Same names with other prompts, more images than seeds, seeds that torch takes for others, sets that
are nearly thin enough, and files with a column of their own."""
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from prdp_nb import evaluation, experiments
from prdp_nb.commands import evaluate_command, sample_command, train_command
from prdp_nb.comparison import (
    Evaluation, before_after, compare, evaluate, fixed_seeds, read_table, summarise, thin)
from prdp_nb.config import Config
from prdp_nb.evaluation import draw_models, draw_strip, evaluate_runs, sample_prompts
from prdp_nb.experiments import add_rows, keep_results
from prdp_nb.figures import draw_gains, draw_grid
from prdp_nb.learner import BASE_FILE
from prdp_nb.models import generate, load_pipeline
from prdp_nb.prompts import load_prompts
from prdp_nb.rewards import JPEGIncompressibility, as_reward, compute_rewards
from prdp_nb.runs import load_checkpoint
from prdp_nb.training import Trainer
from prdp_nb.trajectories import image_noise

PROMPTS = ["a painting of a fox", "a painting of a duck", "a painting of a cow"]


@pytest.fixture(scope="module")
def run(tiny_model, prompt_file, tmp_path_factory):
    "A run of seconds."
    folder = tmp_path_factory.mktemp("evaluation")/"run"
    config = Config(
        epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
        learning_rate=1e-2, reward="colourfulness", eval_images_per_prompt=1, eval_rewards=(),
        model=str(tiny_model), prompts=str(prompt_file), output_dir=str(folder))
    return Trainer(config).train()


@pytest.fixture
def pipe(tiny_model): return load_pipeline(str(tiny_model))


# The base's evaluation


def test_a_base_is_shared_by_prompts_and_not_by_names(run, tmp_path, monkeypatch):
    # two runs whose training sets have one name, and other prompts in it
    monkeypatch.chdir(tmp_path)
    folders, sampled = [], []
    for number, animal in enumerate(("bee", "ant")):
        folder = shutil.copytree(run, tmp_path/f"run{number}")
        named = replace(Config.load(run/"config.yaml"), prompts="set.txt", output_dir=str(folder))
        named.save(folder/"config.yaml")
        folders.append(folder)
    def load_sets(config, *_):
        animal = "bee" if config.output_dir.endswith("0") else "ant"
        return {config.prompts: [f"a painting of a {animal}", "a painting of a fox"]}
    real = evaluation.evaluate
    def noted(*arguments, **options):
        sampled.append(options["title"].split()[0])
        return real(*arguments, **options)
    monkeypatch.setattr(evaluation, "load_sets", load_sets)
    monkeypatch.setattr(evaluation, "evaluate", noted)
    table = evaluate_runs(folders)
    assert sampled == ["base", "run0", "base", "run1"]
    assert table.prompt.tolist() == ["a painting of a bee", "a painting of a fox",
                                     "a painting of a ant", "a painting of a fox"]
    sampled.clear()
    evaluate_runs(folders[:1]*2)
    assert sampled == ["base", "run0", "run0"] # the same prompts: once


def made(prompts, names=("a", "b"), images=2):
    scores = {name: np.ones((len(prompts), images)) for name in names}
    return Evaluation(list(prompts), scores, [])


UNEQUAL = [ # the finetuned model's, what the error says
    (made(PROMPTS[:2]), "the base was evaluated on 3 prompts, the finetuned model on 2"),
    (made(PROMPTS + ["a fourth"]), "on 3 prompts, the finetuned model on 4"),
    (made(PROMPTS[::-1]), "prompt 0 of the base is 'a painting of a fox', of the finetuned model "
                          "'a painting of a cow'"),
    (made([*PROMPTS[:2], "a painting of a cow "]), "prompt 2 of the base is"),
    (made(PROMPTS, names=("a",)), "evaluate both with the same scorers"),
    (made(PROMPTS, names=("a", "b", "c")), "evaluate both with the same scorers"),
    (made(PROMPTS, names=("a", "c")), "evaluate both with the same scorers"),
    (made(PROMPTS, images=3), "evaluate both with the same scorers and images")]


@pytest.mark.parametrize("tuned, says", UNEQUAL, ids=[says[:40] for _, says in UNEQUAL])
def test_unequal_evaluations_are_not_compared(tuned, says):
    for base, other in ((made(PROMPTS), tuned), (tuned, made(PROMPTS))):
        with pytest.raises(ValueError, match=says if other is tuned else "evaluate both"):
            compare(base, other, Config(), "set")


def test_the_order_of_scorers_does_not_matter():
    table = compare(made(PROMPTS), made(PROMPTS, names=("b", "a")), Config(), "set")
    assert table.scorer.tolist() == ["a"]*3 + ["b"]*3


# Seeds


def test_seeds_of_an_evaluation_are_all_different(pipe):
    assert fixed_seeds(range(3), 4) == [0, 1, 2, 3, 1000, 1001, 1002, 1003, 2000, 2001, 2002, 2003]
    assert len({*fixed_seeds(range(45), 1000)}) == 45_000
    for images in (1001, 5000):
        with pytest.raises(ValueError, match=f"at most 1000 images a prompt, given {images}"):
            fixed_seeds(range(2), images)
        with pytest.raises(ValueError, match="at most 1000 images a prompt"):
            evaluate(pipe, PROMPTS, {}, Config(), images)
    with pytest.raises(ValueError, match="image must be below 1000, not 1000"):
        sample_prompts(Config(), pipe, PROMPTS, image=1000)


def test_commands_refuse_more_images_than_seeds(run, tmp_path, capsys):
    assert evaluate_command([str(run), "--images_per_prompt", "1001"]) == 1
    assert "images_per_prompt must be at most 1000, not 1001" in capsys.readouterr().err
    new = tmp_path/"new"
    assert train_command(["--eval_images_per_prompt", "1001", "--output_dir", str(new)]) == 1
    assert "eval_images_per_prompt must be at most 1000, not 1001" in capsys.readouterr().err
    assert not new.exists()


@pytest.mark.parametrize("seed", [2**32, 2**32 + 7, 2**63 - 1, 2**64, -1])
def test_a_seed_that_torch_takes_for_another_is_refused(seed, pipe, run, tmp_path, capsys):
    says = f"at least 0 and below 4294967296, not {seed}"
    for given in (seed, np.uint64(seed) if 0 <= seed < 2**64 else seed):
        with pytest.raises(ValueError, match=says): generate(pipe, PROMPTS[:2], [0, given], 2, 1.0)
        with pytest.raises(ValueError, match=says): image_noise(given, (1, 2, 2), 2)
    assert sample_command([str(run), "fox", "--seed", str(seed)]) == 1
    assert train_command(["--seed", str(seed), "--output_dir", str(tmp_path/"new")]) == 1
    assert capsys.readouterr().err.count("error: seed must be ") == 2


def test_the_last_seed_is_one_of_its_own(pipe):
    images = generate(pipe, PROMPTS[:1]*3, [0, 2**31, 2**32 - 1], 2, 1.0)
    assert len({image.tobytes() for image in images}) == 3
    assert not torch.equal(image_noise(0, (1, 2, 2), 2), image_noise(2**32 - 1, (1, 2, 2), 2))


# Sets


def test_thinning_leaves_as_many_as_were_asked_for():
    for size in (1, 2, 45, 99, 100, 101, 150, 199, 200, 201, 1234, 100_000, 103_700):
        kept = thin([*range(size)], 100)
        assert len(kept) == min(size, 100) and kept == sorted({*kept})
        assert kept[0] == 0
        steps = {b - a for a, b in zip(kept, kept[1:])}
        assert steps <= {size//100, math.ceil(size/100)} or size < 100
    for size, at_most in ((45, 100), (100, 100), (100_000, 100), (100_000, 10_000)): # as ever
        every = math.ceil(size/at_most)
        assert thin([*range(size)], at_most) == [*range(0, size, every)]


FILES = {"own.csv": "id,caption\n1,a fox\n2,a duck\n",
         "own.json": json.dumps([dict(id=1, caption="a fox"), dict(id=2, caption="a duck")]),
         "own.jsonl": '{"id": 1, "caption": "a fox"}\n{"id": 2, "caption": "a duck"}\n'}


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_a_column_of_its_own_is_evaluated(name, run, tmp_path, capsys):
    (tmp_path/name).write_text(FILES[name])
    line, output = [str(run), "--prompts", str(tmp_path/name)], tmp_path/"table.csv"
    assert evaluate_command(line) == 1
    assert "name one of its columns: id, caption" in capsys.readouterr().err
    assert evaluate_command([*line, "--prompt_column", "caption", "--output", str(output)]) == 0
    assert read_table(output).prompt.tolist() == ["a fox", "a duck"]
    table = evaluate_runs(run, str(tmp_path/name), prompt_column="caption")
    pd.testing.assert_frame_equal(table.drop(columns="sampler"), read_table(output), atol=2e-3)
    assert evaluate_command([*line, "--prompt_column", "captoin"]) == 1
    assert "it has no column 'captoin'" in capsys.readouterr().err


def test_a_column_of_the_run_gives_way(run, tmp_path):
    folder = shutil.copytree(run, tmp_path/"run")
    replace(Config.load(run/"config.yaml"), prompt_column="text").save(folder/"config.yaml")
    (tmp_path/"own.csv").write_text("id,prompt\n1,a fox\n")
    found = evaluate_runs(folder, str(tmp_path/"own.csv"), prompt_column="prompt")
    assert found.prompt.tolist() == ["a fox"]


# What one scorer, run or row does to another


def shrink(images, prompts):
    "A reward that changes in place what it is given, as `thumbnail` does."
    for image in images: image.thumbnail((2, 2))
    prompts[:] = ["nothing"]*len(prompts)
    images.reverse()
    return [0.0]*len(images)


def test_a_reward_that_changes_its_images_does_not_change_those_of_others(run, prompt_file):
    alone = evaluate_runs(run, rewards=["jpeg_incompressibility"])
    after = evaluate_runs(run, rewards=[shrink, "jpeg_incompressibility"])
    after = after[after.scorer == "jpeg_incompressibility"]
    assert after.base.tolist() == alone.base.tolist() and after.prompt.tolist() == PROMPTS
    assert after.tuned.tolist() == alone.tuned.tolist()
    image = Image.effect_noise((32, 32), 50).convert("RGB")
    sizes = JPEGIncompressibility()
    total = compute_rewards(as_reward(shrink) + sizes, [image], ["a"])
    assert total.tolist() == compute_rewards(sizes, [image], ["a"]).tolist()


@dataclass
class Level:
    "A reward that has no hash."
    level: float = 0.5
    def __call__(self, images, prompts): return [self.level]*len(images)


def test_a_reward_without_a_hash_is_evaluated(run):
    assert evaluate_runs(run, rewards=Level()).base.tolist() == [0.5]*3


def test_a_sampler_that_is_named_twice_is_used_once(run, tmp_path, capsys):
    table = tmp_path/"table.csv"
    given = [str(run), "--samplers", "training", "training", "--output", str(table)]
    assert evaluate_command(given) == 0
    assert read_table(table).prompt.tolist() == PROMPTS


def test_no_run_is_said():
    with pytest.raises(ValueError, match="no run to evaluate"): evaluate_runs([])


def test_a_run_that_is_none_stops_the_work_before_the_others_are_sampled(run, tmp_path, monkeypatch):
    def sampled(*_, **__): raise AssertionError("images were made")
    monkeypatch.setattr(evaluation, "evaluate_set", sampled)
    with pytest.raises(ValueError, match="is not a run folder"): evaluate_runs([run, tmp_path])
    other = tmp_path/"other"
    shutil.copytree(run, other)
    shutil.rmtree(other/"final")
    with pytest.raises(ValueError, match="unknown checkpoint 'final'"): evaluate_runs([run, other])


def test_each_run_is_held_against_its_own_base(run, tmp_path, monkeypatch):
    other, bases = shutil.copytree(run, tmp_path/"other"), []
    base_of = evaluation.base_of
    monkeypatch.setattr(evaluation, "base_of", lambda *given: bases.append(given) or base_of(*given))
    evaluate_runs([run, other], rewards=["colourfulness"])
    assert len(bases) == 1
    path = other/BASE_FILE
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    for look in (lambda: evaluate_runs([run, other], rewards=["colourfulness"]),
                 lambda: draw_models({"one": run, "two": other}, PROMPTS, tmp_path/"models.png")):
        monkeypatch.setattr(evaluation, "load_checkpoint", unchecked(other))
        with pytest.raises(ValueError, match="is not the one that the run in .*other' began with"):
            look()


def unchecked(run):
    "`load_checkpoint` as it is for a full finetune, whose base is not there to be checked."
    def load(folder, *given):
        config, pipe = load_checkpoint(folder if folder != run else run.with_name("same"), *given)
        return replace(config, output_dir=str(folder)), pipe
    shutil.copytree(run, run.with_name("same"), dirs_exist_ok=True)
    (run.with_name("same")/BASE_FILE).unlink()
    return load


def test_a_full_finetune_in_half_precision_has_another_base_than_a_lora(run, monkeypatch):
    config, pipe = load_checkpoint(run, device="cpu")
    made = []
    def base(config, pipe): made.append(config.adapter); return pipe
    monkeypatch.setattr(evaluation, "base_of", base)
    monkeypatch.setattr(evaluation, "check_base", lambda *given: None)
    bases, scorers = {}, {"colourfulness": as_reward("colourfulness")}
    for adapter in ("lora", "full", "lora"):
        changed = replace(config, dtype="bfloat16", adapter=adapter)
        evaluation.evaluate_set(pipe, changed, PROMPTS, "three", scorers, 1, bases)
    assert made == ["lora", "full"]


def test_one_gain_has_no_interval():
    row = dict(experiment="e", method="prdp", seed=0, prompt_set="one", prompt="a", scorer="s")
    table = pd.DataFrame([row | dict(base=0.1, tuned=0.2)])
    [one] = summarise(table).itertuples()
    assert math.isnan(one.low) and math.isnan(one.high) and one.gain == pytest.approx(0.1)
    assert before_after(table).endswith("+0.1000   none: a single prompt")
    seeds = pd.concat([table, table.assign(seed=1, tuned=0.4)])
    [two] = summarise(seeds).itertuples()
    assert two.low == pytest.approx(0.1) and two.high == pytest.approx(0.3)


def test_a_score_that_is_missing_is_named():
    row = dict(experiment="e", method="prdp", seed=0, prompt_set="one", scorer="s", base=0.1)
    table = pd.DataFrame([row | dict(prompt="a", tuned=0.2), row | dict(prompt="b", tuned=math.nan)])
    with pytest.raises(ValueError, match="seed 0 has no score for 'b'"): summarise(table)


def test_runs_of_one_folder_name_keep_their_methods(run, tmp_path):
    same = {}
    for method in ("prdp", "ddpo"):
        folder = shutil.copytree(run, tmp_path/method/"seed0")
        same[method] = [folder]
    keep_results(same, tmp_path/"kept")
    kept = read_table(tmp_path/"kept.csv")
    assert kept.method.tolist() == ["prdp"]*3 + ["ddpo"]*3
    with pytest.raises(ValueError, match="could not be told apart: rename them"):
        keep_results(same, tmp_path/"again", ["emoji_animals"])


def test_a_kept_table_holds_text_as_it_was(tmp_path):
    path, columns = tmp_path/"kept.csv", dict(method="prdp", scorer="s", tuned=1.0)
    for seed in range(2):
        rows = [dict(prompt=p, seed=seed, base=b) for p, b in (("null", 0.5), ("007", math.nan))]
        add_rows(path, pd.DataFrame(rows).assign(**columns), ["prompt", "seed"])
    lines = path.read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["null", "007"]*2
    assert [line.split(",")[2] for line in lines[1:]] == ["0.5", ""]*2


def test_a_run_that_fails_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    def threads(workers, mp_context): return ThreadPoolExecutor(workers)
    monkeypatch.setattr(experiments, "ProcessPoolExecutor", threads)
    def work(run):
        if run.seed == 0: raise KeyError(run.method)
        return run, [dict(epoch=0) | dict.fromkeys(experiments.FOUND[1:], 0.0)]
    monkeypatch.setattr(experiments, "work", work)
    runs, path = [experiments.LabRun(seed=seed) for seed in range(4)], tmp_path/"runs.csv"
    with pytest.raises(KeyError, match="prdp"): experiments.run_all(runs, path, workers=1)
    assert len(experiments.read_runs(path, runs[1:])) == 3


def test_a_picture_shows_what_it_says(run, tmp_path):
    summary = pd.DataFrame([dict(experiment=name, scorer="s", prompt_set="p", method="prdp",
                                 gain=gain, low=0.0, high=1.0)
                            for name, gain in (("one", 0.1), ("two", 0.4))])
    with pytest.raises(ValueError, match="s, p, prdp: expected one row, found several"):
        draw_gains(summary, tmp_path/"gains.png")
    with pytest.raises(ValueError, match="give the run another label"):
        draw_models({"base": run}, PROMPTS, tmp_path/"models.png")
    with pytest.raises(ValueError, match="'a fox' is there twice"):
        draw_strip(run, ["a fox", "a duck", "a fox"], tmp_path/"strip.png")
    grey = Image.new("L", (16, 16), 128)
    draw_grid({"grey": [grey], "the same": [grey.convert("RGB")]}, ["one"], tmp_path/"grid.png")
    drawn = np.asarray(Image.open(tmp_path/"grid.png").convert("RGB"))
    coloured = (drawn.max(-1).astype(int) - drawn.min(-1)) > 40
    assert not coloured.any()


def test_signs_of_no_width_are_no_prompt(tmp_path):
    path = tmp_path/"joined.txt"
    path.write_text("\ufeffa fox\n\ufeffa fox\n\u200b\n \u200b a duck \ufeff\n", encoding="utf-8")
    assert load_prompts(str(path)) == ["a fox", "a duck"]
