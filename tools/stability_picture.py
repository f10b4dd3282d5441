"The front page's picture of PRDP, GRPO and DDPO in the laboratory: the runs of 30 with a learning rate of 1e-3 and a prompts' own share of 0.95."
import hashlib
from pathlib import Path
import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from prdp_nb.experiments import LabRun, read_runs

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT/"nbs/images/stability.png"
METHODS = {"prdp": ("PRDP", "tab:blue"), "grpo": ("GRPO", "tab:green"), "ddpo_batch": ("DDPO", "tab:red")}

def curves() -> pd.DataFrame: # ten runs a method
    runs = [LabRun(method, seed, prompt_share=0.95) for method in METHODS for seed in range(10)]
    return read_runs(ROOT/"nbs/results/stability/runs.csv", runs)

def fingerprint(table: pd.DataFrame) -> str: # of what is drawn; the picture carries it
    return hashlib.sha256(table[["method", "seed", "epoch", "quality", "kl"]].to_csv(index=False).encode()).hexdigest()

def draw(table: pd.DataFrame, path: Path):
    figure, (quality, kl) = plt.subplots(1, 2, figsize=(9, 3), dpi=100, layout="constrained")
    for (method, _), run in table.groupby(["method", "seed"]):
        colour = METHODS[method][1]
        quality.plot(run.epoch, run.quality, color=colour, lw=1, alpha=0.7)
        kl.plot(run.epoch[1:], run.kl[1:], color=colour, lw=1, alpha=0.7)
    quality.set(xlabel="epoch of 512 samples", ylabel="quality, held-out prompts", ylim=(-0.03, 1.03))
    kl.set(xlabel="epoch of 512 samples", ylabel="KL to the base model (nats)", yscale="log", ylim=(0.3, 1e6))
    for name, colour in METHODS.values(): quality.plot([], [], color=colour, label=name)
    quality.legend(loc="center right")
    figure.savefig(path, metadata={"Description": fingerprint(table)})

if __name__ == "__main__": draw(curves(), PICTURE)
