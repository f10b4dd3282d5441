"""Learning from a share of the (picture, step) cells: what is reached in equal time.

    python benchmarks/subset.py [--seeds 0 1 2] [--budget 360] [--tiny]

For each seed one run of the preset emoji_small with every share; the runs take turns, epoch by epoch. A run ends when its epochs have taken `--budget` seconds of
the processor, to the nearest epoch: on one thread that is the wall time of a machine that does nothing else. Then each model is scored on the run's fixed seeds.
An interrupted command goes on where it was; the runs are kept in runs/subset.
"""
import argparse, time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock
import numpy as np, torch
from common import RESULTS, about, ready, write_rows
from prdp_nb.config import Config
from prdp_nb.runs import read_metrics, run_lock
from prdp_nb.training import run_epoch

FRACTIONS = (1.0, 0.5, 0.25)
TINY = dict(prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, eval_images_per_prompt=1)

def epoch_seconds(trainer) -> np.ndarray: # of the processor, of each epoch so far
    return read_metrics(trainer.folder)["seconds"] if trainer.progress.epochs else np.zeros(0)

def time_left(trainer, budget: float) -> float: # seconds, once another epoch is half done; a run ends where that is negative
    past = epoch_seconds(trainer)
    return budget - past.sum() - (np.median(past)/2 if len(past) else 0)

def train_in_turns(trainers: list, budget: float):
    while open_runs := [trainer for trainer in trainers if time_left(trainer, budget) > 0]:
        trainer = min(open_runs, key=lambda trainer: epoch_seconds(trainer).sum())
        row = run_epoch(trainer, trainer.progress.epochs)
        print(f"cell_fraction {trainer.config.cell_fraction:g}, seed {trainer.config.seed}, epoch {row['epoch']}: {row['seconds']:.1f} s, reward {row['reward_mean']:.4f}", flush=True)

def measure(seed: int, budget: float, folder: Path, overrides: dict) -> list[dict]: # one row a share
    with ExitStack() as locks:
        trainers = []
        for fraction in FRACTIONS:
            config = Config.preset("emoji_small", seed=seed, cell_fraction=fraction, output_dir=folder/f"{fraction:g}_{seed}", epochs=100_000, device="cpu",
                                   save_every=1, keep_checkpoints=2, eval_rewards=(), **overrides)
            locks.enter_context(run_lock(Path(config.output_dir)))
            trainers.append(ready(config))
        base_of(trainers[0])
        train_in_turns(trainers, budget)
        return [outcome(trainer, trainers[0]) for trainer in trainers]

def base_of(trainer): return trainer.table.before(trainer.learner.pipe, trainer.folder) # an `Evaluation`

def outcome(trainer, first) -> dict:
    past, scores = epoch_seconds(trainer), lambda evaluation: float(evaluation.scores[trainer.config.reward].mean())
    return dict(seed=trainer.config.seed, cell_fraction=trainer.config.cell_fraction, epochs=trainer.progress.epochs, seconds=round(past.sum(), 1),
                epoch_seconds=round(float(np.median(past)), 2), reward_before=round(scores(base_of(first)), 4), reward_after=round(scores(trainer.table.evaluate(trainer.learner.pipe, "after")), 4), **about())

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=360, help="seconds of training of each run")
    parser.add_argument("--runs", type=Path, default=Path("runs/subset"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with mock.patch("prdp_nb.training.time.perf_counter", time.process_time): # the clock of `seconds` in metrics.csv
        rows = [row for seed in options.seeds for row in measure(seed, options.budget, options.runs, TINY if options.tiny else {})]
    write_rows(options.results/"subset.csv", rows)
