"prdp_evaluate as a process, what it refuses, and evaluation of a full UNet's checkpoints."
import os
import numpy as np
import pytest, torch
from forked import run_forked
from prdp_nb.commands import evaluate_command
from prdp_nb.comparison import COLUMNS, read_table
from prdp_nb.config import Config
from prdp_nb.evaluation import draw_strip, evaluate_runs
from prdp_nb.runs import checkpoints, load_checkpoint
from prdp_nb.training import Trainer

ENV = os.environ | dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1")
PROMPTS = ["a painting of a fox", "a painting of a duck", "a painting of a cow"]

def contrast(images, prompts): return [float(np.asarray(image).std()) for image in images]

@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    "Two runs of seconds, one of a LoRA and one of the whole UNet, and their prompts."
    here = tmp_path_factory.mktemp("evaluation")
    animals = here/"animals.txt"
    animals.write_text("\n".join(PROMPTS))
    for adapter, learning_rate in dict(lora=1e-2, full=1e-4).items():
        config = Config(
            epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
            learning_rate=learning_rate, adapter=adapter, eval_images_per_prompt=1,
            eval_rewards=("emoji_score",), save_every=1, prompts=str(animals),
            model=str(tiny_model), output_dir=str(here/adapter))
        Trainer(config, reward=contrast).train()
    return here

def finish(folder, *arguments):
    given = [str(argument) for argument in arguments]
    return run_forked(evaluate_command, given, environment=ENV, folder=folder)

def test_the_command_makes_the_trainer_s_table_again(folder, tmp_path):
    output, plot = tmp_path/"table.csv", tmp_path/"plot.png"
    done = finish(tmp_path, folder/"lora", "--prompts", folder/"animals.txt",
                  "--rewards", "emoji_score", "colourfulness", "--output", output, "--plot", plot)
    assert done.returncode == 0, done.stderr
    header, _, *summary = done.stdout.splitlines()
    columns = "sampler prompt_set scorer prompts base tuned gain low high win_rate".split()
    assert header == f"| {' | '.join(columns)} |"
    assert len(summary) == 2
    assert plot.exists()
    table = read_table(output)
    assert list(table) == COLUMNS
    assert list(table.scorer) == ["emoji_score"]*3 + ["colourfulness"]*3
    recorded = read_table(folder/"lora/evaluation.csv")
    again, before = (t[t.scorer == "emoji_score"][["base", "tuned"]] for t in (table, recorded))
    np.testing.assert_allclose(again, before, atol=2e-3)

def test_help_reads_like_documentation(tmp_path):
    done = finish(tmp_path, "--help")
    assert done.returncode == 0
    assert "Example: prdp_evaluate" in done.stdout
    assert "%%" not in done.stdout
    flags = "prompts rewards checkpoint images_per_prompt device output plot".split()
    for flag in flags: assert f"--{flag} " in done.stdout

BAD = [ # arguments, what the one line on stderr must say
    ("{here}", "is not a run folder: expected config.yaml and final/ in it"),
    ("{here}/nowhere", "is not a run folder"),
    ("{here}/lora --checkpoint epoch_0003",
     "unknown checkpoint 'epoch_0003'; the nearest is 'epoch_000"),
    ("{here}/lora --checkpoint ../..", "known are: epoch_0001, epoch_0002, final"),
    ("{here}/lora --prompts emoji_sen",
     "unknown prompt set 'emoji_sen'; the nearest is 'emoji_seen'"),
    ("{here}/lora --prompts missing.txt", "missing.txt"),
    ("{here}/lora --rewards emoji_juge",
     "unknown scorer 'emoji_juge'; the nearest is 'emoji_judge'"),
    ("{here}/lora --rewards 2*emoji_juge", "'emoji_judge'"),
    ("{here}/lora --images_per_prompt 0", "images_per_prompt must be at least 1, not 0"),
    ("{here}/lora --device gpu", "device 'gpu' cannot be used here"),
    ("{here}/lora --output {here}/lora/metrics.csv",
     "is no table of evaluations: it lacks experiment")]

@pytest.mark.parametrize("arguments, says", BAD, ids=[arguments for arguments, _ in BAD])
def test_bad_input_is_met_before_any_sampling(arguments, says, folder, capsys, monkeypatch):
    monkeypatch.setattr("prdp_nb.evaluation.evaluate", lambda *a, **k: pytest.fail("sampled"))
    given = [argument.format(here=folder) for argument in arguments.split()]
    assert evaluate_command(given) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("prdp_evaluate: error: ")
    assert len(error.strip().splitlines()) == 1

def unet_weights(run, checkpoint):
    _, pipe = load_checkpoint(run, checkpoint)
    return pipe.unet.state_dict()

def test_checkpoints_of_a_full_unet_are_evaluated_and_drawn(folder, tmp_path):
    lora, full = folder/"lora", folder/"full"
    assert list(checkpoints(full)) == ["epoch_0001", "epoch_0002", "final"]
    early, last, final = (unet_weights(full, name) for name in checkpoints(full))
    assert all(torch.equal(last[key], final[key]) for key in final)
    assert any(not torch.equal(early[key], final[key]) for key in final)
    table = evaluate_runs([lora, full], rewards=["colourfulness", contrast],
                          checkpoint="epoch_0001")
    assert list(table.experiment.unique()) == ["lora/epoch_0001", "full/epoch_0001"]
    assert len(table) == 2*2*3
    of_lora, of_full = (table[table.experiment.str.startswith(name)] for name in ("lora", "full"))
    np.testing.assert_array_equal(of_lora.base, of_full.base)
    assert (of_lora.tuned.to_numpy() != of_full.tuned.to_numpy()).all()
    strip = tmp_path/"strip.png"
    draw_strip(full, PROMPTS, strip)
    assert strip.stat().st_size > 1000
