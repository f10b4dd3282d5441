"The front page's picture of PRDP, GRPO and DDPO in the laboratory, from nbs/results/stability/runs.csv."
from pathlib import Path
import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT/"nbs/images/stability.png"
METHODS = {"prdp": ("PRDP", "tab:blue"), "grpo": ("GRPO", "tab:green"), "ddpo_batch": ("DDPO", "tab:red")}
PLAIN = dict(learning_rate=1e-3, prompt_share=0.95, dimensions=16, steps=10, kl_weight=3.0, updates=1, epochs=1000, # the study `curves` of 30
             warmup=0, world=0, width=0, max_grad_norm=1.0, beta2=0.999, decay=False, fallen=False, online=True, float64=False)

def curves() -> pd.DataFrame: # ten runs a method
    table = pd.read_csv(ROOT/"nbs/results/stability/runs.csv")
    for name, value in PLAIN.items(): table = table[table[name] == value]
    return table[table.method.isin(METHODS)]

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
    figure.savefig(path)

if __name__ == "__main__": draw(curves(), PICTURE)
