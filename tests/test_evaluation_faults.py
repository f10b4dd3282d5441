"""Guards 16_comparison and 25_evaluation: evaluations compare like with like.

Same names with other prompts, more images than seeds, seeds that torch takes for others, sets that
are nearly thin enough, and files with a column of their own."""
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from prdp_nb import evaluation
from prdp_nb.commands import evaluate_command, sample_command, train_command
from prdp_nb.comparison import Evaluation, compare, evaluate, fixed_seeds, read_table, thin
from prdp_nb.config import Config
from prdp_nb.evaluation import evaluate_runs, sample_prompts
from prdp_nb.models import generate, load_pipeline
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
