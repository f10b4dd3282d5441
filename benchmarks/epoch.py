"""What an epoch costs: beside the bare UNet calls it must make, in memory, and as the run grows.

    python benchmarks/epoch.py bare     epoch time over the time of its UNet calls alone, on the embedded model
    python benchmarks/epoch.py families the same for a small random pipeline of each other family
    python benchmarks/epoch.py memory   largest resident memory of an update against T, as tests/test_memory.py measures it
    python benchmarks/epoch.py growth   epoch time as N, B, T and the prompt set grow, and the share of cells shrinks

Each with [--rounds 3] [--tiny]. Times are taken in turns, on one thread, in seconds of the processor; results/*.csv keeps every one of them.
"""
import argparse, sys, tempfile, time
from contextlib import ExitStack, nullcontext
from itertools import groupby
from pathlib import Path
from unittest import mock
import torch
import prdp_nb.algorithm, prdp_nb.scoring
from common import RESULTS, about, ready, seconds, write_rows
from prdp_nb.families import tiny_pipeline
from prdp_nb.finetuning import adapters_off
from prdp_nb.loading import quiet_loading
from prdp_nb.models import family_of, network_of
from prdp_nb.policies import trainable_parameters
from prdp_nb.config import Config
from prdp_nb.training import run_epoch
from trl_epochs import UnetCalls

PARTS = dict(encoding=(prdp_nb.scoring, "encode_prompts"), decoding=(prdp_nb.scoring, "decode_latents"), reward=(prdp_nb.scoring, "score_prompts"), optimizer=(prdp_nb.algorithm, "gradient_step")) # of an epoch outside the UNet -> its function
UNITS = dict(prompts_per_epoch=2, images_per_prompt=4, num_inference_steps=5, cell_fraction=1.0) # N, B, T and share; each is changed by itself
TINY = dict(prompts_per_epoch=1, images_per_prompt=2, num_inference_steps=1, cell_fraction=1.0)
SETS = (1_000, 100_000) # prompts
LARGER = dict( # of the tiny networks, for epochs of 10 s: what is not the network takes some 0.3 to 0.5 s of them. SDXL is wide, not deep: walks over its modules cost by their number
    StableDiffusionXLPipeline=dict(block_out_channels=(32, 128), transformer_layers_per_block=(1, 6)), StableDiffusion3Pipeline=dict(num_layers=10), FluxPipeline=dict(num_layers=4, num_single_layers=8), SanaPipeline=dict(num_layers=12))

def config(folder: Path, **fields) -> Config: # a run of which only epochs are of interest
    return Config.preset("emoji_small", epochs=100_000, save_every=100_000, eval_rewards=(), device="cpu", output_dir=folder, **fields)

def record(policy, work) -> list[tuple]: # the UNet calls within `work`: arguments, with a graph?, with the adapter?
    calls = []
    def add(network, given, named): calls.append((given, named, torch.is_grad_enabled(), bool(trainable_parameters(policy))))
    hook = policy.denoiser.model.register_forward_pre_hook(add, with_kwargs=True)
    try: work()
    finally: hook.remove()
    return calls

def replay(policy, calls: list[tuple]): # the same calls, forward, and backward where there was a graph
    network = policy.denoiser.model
    for adapted, same in groupby(calls, key=lambda call: call[3]):
        with nullcontext() if adapted else adapters_off(network):
            for given, named, graph, _ in same:
                with torch.set_grad_enabled(graph): output = network(*given, **named)[0]
                if graph: output.sum().backward()
    network.zero_grad()

def timed_parts(work, network) -> tuple[tuple[float, float], dict[str, float]]: # seconds of the work, and of each of PARTS and the network within it
    places = PARTS | dict(network=(network, "forward"), backward=(torch.Tensor, "backward"))
    spent = dict.fromkeys(places, 0.0)
    def clocked(part, function):
        def run(*given, **named):
            start = time.process_time()
            try: return function(*given, **named)
            finally: spent[part] += time.process_time() - start
        return run
    with ExitStack() as stack:
        for part, (module, name) in places.items(): stack.enter_context(mock.patch.object(module, name, clocked(part, getattr(module, name))))
        return seconds(work), spent

def turns(trainer, rounds: int, **label) -> list[dict]: # an epoch and its bare calls, several times
    images, rows = trainer.config.prompts_per_epoch*trainer.config.images_per_prompt, []
    counted = UnetCalls(trainer.learner.policy.denoiser.model)
    calls = record(trainer.learner.policy, lambda: run_epoch(trainer, 1))
    evaluations = counted.per_image(images)
    for turn in range(rounds):
        (cpu, wall), parts = timed_parts(lambda: run_epoch(trainer, turn + 2), trainer.learner.policy.denoiser.model)
        alone = seconds(lambda: replay(trainer.learner.policy, calls))
        for kind, times, extra in (("epoch", (cpu, wall), parts), ("bare", alone, dict.fromkeys(parts, 0.0))):
            rows.append(dict(**label, kind=kind, turn=turn, images=images, seconds=round(times[0], 3), wall=round(times[1], 3), **{p: round(s, 3) for p, s in extra.items()}, **evaluations, **about()))
        print(*label.values(), f"epoch {cpu:.2f} s, its network calls alone {alone[0]:.2f} s, ratio {cpu/alone[0]:.3f}", flush=True)
    return rows

def bare(folder: Path, rounds: int, tiny: bool) -> list[dict]:
    return turns(ready(config(folder/"run", prompts_per_epoch=1 if tiny else 2, **dict(num_inference_steps=2, images_per_prompt=2) if tiny else {})), rounds)

def of_family(kind: str, folder: Path, tiny: bool) -> Config: # a run of a small random pipeline of that class
    pipe = tiny_pipeline(kind)
    network = network_of(pipe)
    with quiet_loading():
        if not tiny: setattr(pipe, family_of(pipe).network, type(network).from_config(network.config, **LARGER[kind]))
        pipe.save_pretrained(folder/kind)
    (folder/"prompts.txt").write_text("a painting of a fox\na photo of a duck")
    size = dict(images_per_prompt=2, num_inference_steps=4) if tiny else dict(images_per_prompt=8, num_inference_steps=20) # those of the presets
    return config(folder/f"run_{kind}", model=str(folder/kind), prompts=str(folder/"prompts.txt"), reward="colourfulness", prompts_per_epoch=1, **size)

def families(folder: Path, rounds: int, tiny: bool) -> list[dict]:
    return [row for kind in LARGER for row in turns(ready(of_family(kind, folder, tiny)), rounds, family=kind)]

def memory(folder: Path, rounds: int, tiny: bool) -> list[dict]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]/"tests"))
    from test_memory import naive_update, resident_megabytes, update
    works = [(update, steps) for steps in ((1, 2) if tiny else (5, 20, 50))] + [(naive_update, 2 if tiny else 50)]
    return [dict(work=work.__name__, steps=steps, megabytes=round(resident_megabytes(work, steps), 1), **about()) for work, steps in works]

def settings(base: dict, folder: Path) -> dict[tuple, dict]: # axis and value -> fields; "base" holds the values the others are compared with
    files = []
    for size in SETS:
        files.append(folder/f"{size}.txt")
        files[-1].write_text("\n".join(f"a painting of scene number {i}" for i in range(size)))
    grown = [(name, 2*base[name]) for name in ("prompts_per_epoch", "images_per_prompt", "num_inference_steps")] + [("cell_fraction", f) for f in (0.5, 0.25)]
    found = {("base", 1): base | dict(prompts=str(files[0]))} | {(name, value): base | {name: value} | dict(prompts=str(files[0])) for name, value in grown}
    return found | {("prompt_set", SETS[1]/SETS[0]): base | dict(prompts=str(files[1]))}

def growth(folder: Path, rounds: int, tiny: bool) -> list[dict]:
    base = TINY if tiny else UNITS
    trainers = {key: ready(config(folder/f"{key[0]}_{key[1]}", eval_prompts="emoji_names", **fields)) for key, fields in settings(base, folder).items()}
    rows = []
    for turn in range(rounds):
        for (axis, value), trainer in trainers.items():
            cpu, wall = seconds(lambda: run_epoch(trainer, turn + 1))
            rows.append(dict(axis=axis, value=value, factor=value/base.get(axis, 1), turn=turn, seconds=round(cpu, 3), wall=round(wall, 3), **about()))
            print(axis, value, f"{cpu:.2f} s", flush=True)
    return rows

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("bare", "families", "memory", "growth"))
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds, to see that it works")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(options.results/f"{options.part}.csv", globals()[options.part](Path(folder), options.rounds, options.tiny))
