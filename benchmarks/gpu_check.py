"""What only a GPU can tell, in one run of at most eight minutes.

    python benchmarks/gpu_check.py --peak-tflops 989 # on a GPU: benchmarks/results/gpu_check.json
    python benchmarks/gpu_check.py --tiny            # the same code on small networks, anywhere

First two epochs of the embedded model, on the GPU and on the CPU. Then SD 1.4, SDXL and SD 3.5
medium at true size with random weights, in bfloat16, with a LoRA and gradient checkpointing: the
noise floor of log-probs, the peak memory of a backward pass, an epoch beside its bare network
calls, the speed of sampling, and torch.compile. Each part stands by itself: one that runs out of
memory or fails says so in the JSON, one that would not fit into --seconds is left out.
"""
import argparse, gc, json, math, sys, tempfile, time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from common import RESULTS, about, ready
from epoch import record, replay
from prdp_nb.config import Config
from prdp_nb.families import tiny_pipeline
from prdp_nb.finetuning import adapter_weights, seconds_a_sample
from prdp_nb.loading import quiet_loading
from prdp_nb.models import (
    decode_latents, encode_prompts, family_of, network_of, sample_latents)
from prdp_nb.training import run_epoch
from prdp_nb.trajectories import noise_floor, sample_rollout, score
from sd14_scale import Epoch, peak_memory, seconds, wait
from true_sizes import KINDS, TINY, make_pipeline

CHUNKS = (1, 2, 4, 8) # cells of a backward pass
OTHER_BATCH = 1 # images scored together, beside that of sampling
EPOCH_CHUNK = 4
SETTING = dict(pictures=4, batch=4, steps=4, sampling_steps=20, gradient_checkpointing=True,
               dtype="bfloat16", repeats=1)
SMALL = dict(pictures=2, batch=2, steps=3, sampling_steps=3)
EMOJI = dict(epochs=2, prompts_per_epoch=2, images_per_prompt=4, num_inference_steps=4)
SMALL_EMOJI = EMOJI | dict(prompts_per_epoch=1, images_per_prompt=2, num_inference_steps=2)
TOLERANCE = dict( # a UNet whose weights are off by 1e-4 of themselves keeps within half of both
    lora=0.02, # distance of two LoRAs, over the way that they went
    reward_mean=1e-3)
MAKING, COMPILING, EMOJI_RUNS = 30, 90, 60 # seconds to expect of what is not the network

class Report:
    "A JSON file that is written after each part."
    def __init__(self, path: Path, limit: float, header: dict):
        self.path, self.end, self.found = path, time.perf_counter() + limit, dict(about=header)

    def part(self, group: str, name: str, expected: float, work): # -> what it found, or None
        left, started, found = self.end - time.perf_counter(), time.perf_counter(), None
        if expected > left:
            said = dict(skipped=f"takes about {expected:.0f} s, {max(left, 0):.0f} s are left")
        else:
            said = found = attempt(work)
            if "out_of_memory" in said or "error" in said: found = None
            said = said | dict(seconds=round(time.perf_counter() - started, 2))
        self.found.setdefault(group, {})[name] = said
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        print(group, name, json.dumps(said), flush=True)
        return found

    def failed(self) -> list[str]: # parts with an error
        groups = {group: parts for group, parts in self.found.items() if group != "about"}
        return [f"{group} {name}: {said['error']}" for group, parts in groups.items()
                for name, said in parts.items() if "error" in said]

def attempt(work) -> dict: # what it found, or what stopped it
    try: return work()
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        said = dict(out_of_memory=str(error).splitlines()[0])
    except Exception as error: said = dict(error=f"{type(error).__name__}: {error}"[:500])
    free() # the tensors that the error's traceback held
    return said

def free(): # what is no longer referred to
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()

def emoji_run(folder: str, device: str, fields: dict) -> dict: # LoRA before and after, mean rewards
    trainer = ready(Config.preset("emoji_small", **fields, device=device, output_dir=folder))
    def weights():
        live = adapter_weights(trainer.learner.pipe)
        return torch.cat([live[name].detach().cpu().flatten() for name in sorted(live)])
    before = weights().clone()
    epochs = range(trainer.config.epochs)
    rewards = [run_epoch(trainer, number)["reward_mean"] for number in epochs]
    return dict(before=before, after=weights(), rewards=rewards)

def run_difference(one: dict, other: dict) -> dict: # of two `emoji_run`: LoRA, reward_mean
    way = (one["after"] - one["before"]).norm()
    lora = ((other["after"] - one["after"]).norm()/way).item()
    rewards = zip(one["rewards"], other["rewards"])
    return dict(lora=lora, reward_mean=max(abs(a - b) for a, b in rewards))

def emoji(device: str, fields: dict) -> dict: # on the CPU and on a device, without TF32
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        with tempfile.TemporaryDirectory() as folder:
            cpu, there = (emoji_run(f"{folder}/{name}", where, fields)
                          for name, where in (("cpu", "cpu"), ("there", device)))
    finally: torch.backends.cudnn.allow_tf32 = tf32
    found = run_difference(cpu, there)
    equal = all(found[name] <= TOLERANCE[name] for name in TOLERANCE)
    return dict(devices=["cpu", device], difference=found, tolerance=TOLERANCE, equal=equal,
                reward_mean=cpu["rewards"])

def small_pipeline(kind: str, dtype: torch.dtype, device: str): # of the same structure
    if kind == "StableDiffusionPipeline": return make_pipeline(kind, dtype, device, TINY)
    pipe = tiny_pipeline(kind)
    with quiet_loading():
        for part in (network_of(pipe), pipe.vae): part.to(dtype=dtype, device=device)
        family_of(pipe).prepare(pipe)
    return pipe

def make(kind: str, setting) -> Epoch:
    maker = small_pipeline if setting.tiny else make_pipeline
    return Epoch(maker(kind, getattr(torch, setting.dtype), setting.device), "lora", setting)

def made(epoch: Epoch) -> dict: # what it is, and seconds of its network for a sample
    network, setting = network_of(epoch.pipe), epoch.options
    parameters = sum(p.numel() for name, p in network.named_parameters() if "lora_" not in name)
    held = torch.cuda.memory_allocated()/1e9 if setting.device.startswith("cuda") else None
    return dict(parameters=parameters, latents=list(epoch.policy.latent_shape), gigabytes=held,
                random_steps=len(epoch.policy.schedule.random_steps),
                sample_seconds=seconds_a_sample(epoch.pipe, 2*setting.batch))

def noise(epoch: Epoch) -> dict: # nats per latent dimension
    policy, rollout, batch = epoch.policy, epoch.rollout, epoch.options.batch
    change = score(policy, rollout, batch) - rollout.log_probs
    other = noise_floor(policy, rollout, OTHER_BATCH)
    return dict(same_batches=change.abs().mean().item(), ratio_is_1=bool((change.exp() == 1).all()),
                batch=batch, other_batch=OTHER_BATCH, other_batches=other)

def backward(epoch: Epoch, chunk: int) -> dict: # seconds of all cells; GB, the weights included
    epoch.optimizer.zero_grad()
    taken = seconds(lambda: epoch.backward(chunk), epoch.device, 1)
    peak = peak_memory(lambda: epoch.backward(chunk), epoch.device)
    found = dict(pass_seconds=taken, cells=epoch.weights.numel())
    if math.isnan(peak): return found | dict(gigabytes=None, needs="CUDA, to measure memory")
    return found | dict(gigabytes=peak)

def epoch_ratio(epoch: Epoch) -> dict: # seconds of an epoch and of its bare calls
    setting = epoch.options
    def whole():
        sample_rollout(epoch.policy, *epoch.asked, batch_size=setting.batch)
        epoch.backward(EPOCH_CHUNK)
    calls = record(epoch.policy, whole)
    taken = seconds(whole, setting.device, setting.repeats)
    bare = seconds(lambda: replay(epoch.policy, calls), setting.device, setting.repeats)
    return dict(epoch_seconds=taken, bare_seconds=bare, ratio=taken/bare, calls=len(calls))

def inputs_of(epoch: Epoch, samples: int) -> tuple: # of one call of a denoiser
    device, shape = epoch.policy.schedule.std.device, epoch.policy.latent_shape
    condition = encode_prompts(epoch.pipe, ["a prompt"], warn=False)
    condition = {name: row.expand(samples, *row.shape[1:]) for name, row in condition.items()}
    return (torch.randn(samples, *shape, device=device),
            torch.full((samples,), 500.0, device=device), condition)

@torch.no_grad()
def tflop(epoch: Epoch) -> float: # of a sample, where attention is counted as matrix products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        epoch.policy.denoiser(*inputs_of(epoch, 1))
    return counter.get_total_flops()/1e12

def sampling(epoch: Epoch, peak: float | None) -> dict: # with more steps than the other parts
    setting, family, pipe = epoch.options, family_of(epoch.pipe), epoch.pipe
    schedule = family.schedule(pipe, setting.sampling_steps, family.eta)
    policy, prompts = replace(epoch.policy, schedule=schedule), ["a prompt"]*setting.batch
    asked = prompts, encode_prompts(pipe, prompts, warn=False), list(range(setting.batch))
    taken = seconds(lambda: sample_latents(policy, *asked), setting.device, 1)
    latents = sample_latents(policy, *asked)
    decoding = seconds(lambda: decode_latents(pipe, latents, setting.batch), setting.device, 1)
    each = tflop(epoch)
    rate = each*policy.evaluations*setting.sampling_steps*setting.batch/taken
    return dict(steps=setting.sampling_steps, batch=setting.batch,
                images_per_second=setting.batch/taken, decoding_seconds=decoding/setting.batch,
                tflop_a_sample=each, tflops=rate, peak_tflops=peak, mfu=peak and rate/peak)

@torch.no_grad()
def compiled(epoch: Epoch) -> dict: # seconds of a call of the network, as it is and compiled
    setting, plain = epoch.options, epoch.policy.denoiser
    given, backend = inputs_of(epoch, 2*setting.batch), "eager" if setting.tiny else "inductor"
    def call(denoiser): return seconds(lambda: denoiser(*given), setting.device, 3)
    before, expected = call(plain), plain(*given)
    fast = plain.around(torch.compile(plain.model, backend=backend))
    try:
        wait(setting.device)
        started = time.perf_counter()
        difference = (fast(*given) - expected).abs().max().item()
        compiling, after = time.perf_counter() - started, call(fast)
    finally: torch.compiler.reset()
    return dict(backend=backend, call_seconds=before, compiled_call_seconds=after,
                compile_seconds=compiling, speed_up=before/after, difference=difference)

def check_family(report: Report, kind: str, setting, peak: float | None):
    epoch = None
    def begin():
        nonlocal epoch
        epoch = make(kind, setting)
        return made(epoch)
    found = report.part(kind, "make", MAKING*(not setting.tiny), begin)
    if not found: return
    once = 2*setting.pictures*setting.steps*found["sample_seconds"] # all cells, without a graph
    images = 2*setting.batch*setting.sampling_steps*found["sample_seconds"]
    report.part(kind, "noise", 2*once, lambda: noise(epoch))
    for chunk in CHUNKS:
        report.part(kind, f"backward_{chunk}", 3*4*once, lambda: backward(epoch, chunk))
    epoch.optimizer.zero_grad()
    report.part(kind, "epoch", (2*setting.repeats + 3)*6*once, lambda: epoch_ratio(epoch))
    report.part(kind, "sampling", 3*images, lambda: sampling(epoch, peak))
    report.part(kind, "compile", COMPILING*(not setting.tiny), lambda: compiled(epoch))

def settings(options) -> SimpleNamespace: # of all families
    chosen = SETTING | (SMALL if options.tiny else {})
    return SimpleNamespace(**chosen, device=options.device, tiny=options.tiny)

def header(options) -> dict: # where, when and with what
    on_gpu = options.device.startswith("cuda")
    name = torch.cuda.get_device_name(options.device) if on_gpu else "cpu"
    return about(device=name) | dict(tiny=options.tiny, dtype=SETTING["dtype"],
                                     limit_seconds=options.seconds)

def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small networks, on any machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=480, help="no part begins that would "
                        "end later, as far as can be told")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bfloat16, for the MFU")
    parser.add_argument("--output", type=Path, help="the JSON file; where not given, "
                        "gpu_check.json in benchmarks/results, or with --tiny where temporary "
                        "files go")
    options = parser.parse_args(arguments)
    place = Path(tempfile.gettempdir()) if options.tiny else RESULTS
    options.output = options.output or place/"gpu_check.json"
    return options

def main(arguments=None):
    options = parse(arguments)
    if options.device == "cpu" and not options.tiny:
        sys.exit("this needs a GPU; with --tiny the same code runs here on small networks")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    started, report = time.perf_counter(), Report(options.output, options.seconds, header(options))
    fields, expected = (SMALL_EMOJI, 0) if options.tiny else (EMOJI, EMOJI_RUNS)
    report.part("emoji", "run", expected, lambda: emoji(options.device, fields))
    for kind in KINDS:
        check_family(report, kind, settings(options), options.peak_tflops)
        free()
    print(f"{time.perf_counter() - started:.0f} s; written: {options.output}")
    if report.failed(): sys.exit("\n".join(report.failed()))

if __name__ == "__main__": main()
