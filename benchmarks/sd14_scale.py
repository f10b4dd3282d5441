"""What an epoch costs at the true size of Stable Diffusion v1.4: its parts, a picture and step, beside the bare UNet calls that they must make, and the peak memory.

    python benchmarks/sd14_scale.py --output     # on a GPU; writes benchmarks/sd14_scale.md beside printing it
    python benchmarks/sd14_scale.py --tiny       # the same code on a small UNet, on any machine

The weights are random, so nothing is downloaded: a UNet of 860 M parameters, 64×64 latents of 4 channels, 77 embeddings of width 768, guidance on. A row each for LoRA and the full
UNet and for every chunk size. Times are medians over steps; the ratio is that of an epoch of 50 steps (sampling, reference, backward, decoding, one optimizer step) to its bare
UNet calls. Memory is without a reward model's. Not run on a GPU yet: there is no benchmarks/sd14_scale.md until someone does.
"""
import argparse, gc, platform, statistics, sys, time
from datetime import date
from importlib.metadata import version
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode
from prdp_nb.gradients import backward_log_probs
from prdp_nb.finetuning import make_policy
from prdp_nb.models import computing_in, decode_latents, encode_prompts
from prdp_nb.policies import trainable_parameters
from prdp_nb.trajectories import sample_rollout, score
from true_sizes import SD14, TINY, TOKENS, make_pipeline, make_unet

STEPS = 50
KIND = "StableDiffusionPipeline"

def count(size: dict) -> tuple[int, float]: # parameters of the UNet; 10^12 floating-point operations on one sample, from the shapes alone
    with torch.device("meta"):
        unet, side = make_unet(size), size["unet"]["sample_size"]
        inputs = torch.empty(1, 4, side, side), torch.ones(1), torch.empty(1, TOKENS, size["unet"]["cross_attention_dim"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter: unet(*inputs)
    return sum(p.numel() for p in unet.parameters()), counter.get_total_flops()/1e12

def wait(device: str):
    if device.startswith("cuda"): torch.cuda.synchronize()

def seconds(work, device: str, repeats: int) -> float: # the median of several, after one to warm up
    times = []
    for _ in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])

def peak_memory(work, device: str) -> float: # GB of 10^9 bytes; not a number where there is no GPU
    if not device.startswith("cuda"): return float("nan")
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated()/1e9

class Epoch:
    "A policy and an epoch's record of some pictures and few steps: time is linear in both."
    def __init__(self, pipe, adapter: str, options):
        self.options, self.device, self.pipe = options, options.device, pipe
        self.policy = make_policy(self.pipe, options.steps, 5.0, adapter, dtype=getattr(torch, options.dtype), gradient_checkpointing=options.gradient_checkpointing)
        self.optimizer = torch.optim.AdamW(trainable_parameters(self.policy), 1e-5)
        self.asked = (["a prompt"], encode_prompts(self.pipe, ["a prompt"], warn=False), torch.arange(options.pictures)[None])
        self.rollout = self.sample()
        self.weights = torch.full_like(self.rollout.log_probs, 1e-3)

    def sample(self): return sample_rollout(self.policy, *self.asked, with_reference=False, batch_size=self.options.batch)
    def reference(self): return score(self.policy.as_reference(), self.rollout, self.options.batch)
    def backward(self, chunk: int): backward_log_probs(self.policy, self.rollout, self.weights, chunk_size=chunk)
    def decode(self): decode_latents(self.pipe, self.rollout.latents[0, :, -1], self.options.batch)
    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def inputs(self, batch: int) -> list[tuple]: # of the UNet, for every picture and step: unconditional and conditional halves, in its weights' dtype
        found, dtype = [], next(self.policy.denoiser.parameters()).dtype
        for cells in torch.arange(self.rollout.log_probs.numel(), device=self.device).split(batch):
            now, _, step, condition = self.rollout.cells(cells)
            embeds, = condition.values()
            empty = self.rollout.unconditional["encoder_hidden_states"].expand_as(embeds)
            found.append((now.repeat(2, 1, 1, 1).to(dtype), self.policy.schedule.timesteps[step].repeat(2), torch.cat([empty, embeds]).to(dtype)))
        return found

def bare(policy, inputs: list[tuple], learn: bool = False): # the UNet and nothing else
    unet = policy.denoiser.model
    for given in inputs:
        with torch.set_grad_enabled(learn), computing_in(unet, policy.denoiser.autocast_dtype): output = unet(*given, return_dict=False)[0]
        if learn: output.float().sum().backward()

def sampling_row(epoch: Epoch, options) -> dict: # seconds a picture and step, of a picture decoded, and of an optimizer step; GB
    cells, inputs = epoch.rollout.log_probs.numel(), epoch.inputs(options.batch)
    def each(work): return seconds(work, options.device, options.repeats)/cells
    bare_reference = each(lambda: bare(epoch.policy, inputs)) # the reference is as large
    row = dict(sampling=each(epoch.sample), reference=each(epoch.reference), bare_forward=each(lambda: bare(epoch.policy, inputs)) + bare_reference,
               decoding=each(epoch.decode)*options.steps, sampling_memory=peak_memory(epoch.sample, options.device))
    epoch.backward(1)
    return row | dict(optimizer=seconds(epoch.optimizer.step, options.device, options.repeats))

def learning_row(epoch: Epoch, chunk: int, options) -> dict: # seconds a picture and step; GB with AdamW's state in memory
    cells, inputs = epoch.rollout.log_probs.numel(), epoch.inputs(chunk)
    def each(work): return seconds(work, options.device, options.repeats)/cells
    row = dict(backward=each(lambda: epoch.backward(chunk)), bare_backward=each(lambda: bare(epoch.policy, inputs, learn=True)))
    epoch.optimizer.zero_grad()
    return row | dict(memory=peak_memory(lambda: epoch.backward(chunk), options.device))

def ratio(row: dict, pictures: int = 512) -> float: # an epoch of the paper's size, one update, to its bare UNet calls
    spent = STEPS*(row["sampling"] + row["reference"] + row["backward"]) + row["decoding"] + row["optimizer"]/pictures
    return spent/(STEPS*(row["bare_forward"] + row["bare_backward"]))

COLUMNS = dict(adapter="adapter", chunk="chunk", sampling="sampling", reference="reference", backward="backward", decoding="decoding", optimizer="optimizer", bare_forward="bare forward, twice",
               bare_backward="bare forward and backward", ratio="epoch / bare", sampling_memory="GB, sampling", memory="GB, learning")

def rows(size: dict, options):
    for adapter in ("lora", "full"):
        held = torch.float32 if adapter == "full" else getattr(torch, options.dtype)
        epoch = Epoch(make_pipeline(KIND, held, options.device, size), adapter, options)
        common = sampling_row(epoch, options)
        for chunk in options.chunks:
            try: row = common | learning_row(epoch, chunk, options)
            except (MemoryError, torch.cuda.OutOfMemoryError):
                yield common | dict(adapter=adapter, chunk=chunk, memory="out of memory")
                epoch.optimizer.zero_grad()
            else: yield row | dict(adapter=adapter, chunk=chunk, ratio=ratio(row))
        del epoch
        gc.collect()

def shown(name: str, value) -> str: # milliseconds for times
    if value is None or value != value: return "–"
    if isinstance(value, float): return f"{value:.3f}" if name == "ratio" else f"{value:.2f}" if "memory" in name else f"{1000*value:.1f}"
    return str(value)

def table(size: dict, options) -> str: # Markdown
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    parameters, operations = count(size)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    checkpointing = ", gradient checkpointing" if options.gradient_checkpointing else ""
    lines = [f"{device}, {date.today().isoformat()}, Python {platform.python_version()}, {versions}, {options.dtype}{checkpointing}. A UNet of {parameters:,} parameters, "
             f"{operations:.3g} TFLOP a sample; {options.pictures} pictures in batches of {options.batch}, guidance on.", "",
             "Times in ms: a picture and step, but decoding a picture, optimizer an update. Epoch / bare: of 50 steps and 512 pictures, one update.", "",
             f"| {' | '.join(COLUMNS.values())} |", "|---"*len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(shown(name, row.get(name)) for name in COLUMNS)} |" for row in rows(size, options)]
    return "\n".join(lines)

def refuse_on_cpu(): # with the reason
    a = torch.randn(1024, 1024)
    rate = 2*1024**3/seconds(lambda: a @ a, "cpu", 5)
    (parameters, operations), evaluations = count(SD14), 2*STEPS
    each = operations*1e12/rate
    sys.exit(f"this needs a GPU: a UNet of {parameters:,} parameters takes {operations:.3g} TFLOP a sample, and {rate/1e9:.0f} GFLOP/s, which this CPU multiplies matrices with, make that {each:.0f} s, "
             f"so {evaluations*each/60:.0f} minutes for one picture of {STEPS} guided steps, and four times as much again to score it under the reference and to learn from it. With --tiny the same code runs here on a small UNet")

def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small UNet in place of v1.4's")
    parser.add_argument("--output", action="store_true", help="also write the table to benchmarks/sd14_scale.md")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="the UNet computes in it")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="compute blocks again in the backward pass instead of keeping what they computed")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="cells in one backward pass")
    parser.add_argument("--pictures", type=int, default=16, help="pictures of the timed record")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of the timed record")
    parser.add_argument("--batch", type=int, default=16, help="pictures sampled, scored and decoded at once")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many measurements")
    return parser.parse_args(arguments)

def main(arguments=None):
    options = parse(arguments)
    if not options.tiny and options.device == "cpu": refuse_on_cpu()
    text = table(TINY if options.tiny else SD14, options)
    print(text)
    if options.output: Path(__file__).with_suffix(".md").write_text(f"# What an epoch costs at the size of Stable Diffusion v1.4\n\n{text}\n")

if __name__ == "__main__": main()
