"""The check for a GPU, as far as a CPU goes: the same code on small networks, the true sizes
counted, and what its file and the page say of parts that did not fit."""
import json, math, sys
from pathlib import Path
import pytest, torch
from diffusers import UNet2DConditionModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"benchmarks"))
import gpu_check, table, true_sizes
from prdp_nb.models import denoiser_of, family_of, latent_shape, network_of

FAMILY_PARTS = ["make", "noise", "backward_1", "backward_8", "epoch", "sampling", "compile"]

@pytest.fixture(scope="module")
def found(tmp_path_factory): # by a whole tiny run, a little shortened: its UNets are not compiled
    compile, path = torch.compile, tmp_path_factory.mktemp("check")/"gpu_check.json"
    def quick(model, **named):
        return model if isinstance(model, UNet2DConditionModel) else compile(model, **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", quick)
        patch.setattr(gpu_check, "CHUNKS", (1, 8))
        gpu_check.main(["--tiny", "--device", "cpu", "--peak-tflops", "2", "--output", str(path)])
    return json.loads(path.read_text())

def test_a_tiny_run_measures_every_part(found):
    assert list(found) == ["about", "emoji", *true_sizes.KINDS]
    assert found["about"]["device"] == "cpu" and found["about"]["tiny"]
    assert found["about"]["torch"] == torch.__version__.split("+")[0]
    for kind in true_sizes.KINDS:
        assert list(found[kind]) == FAMILY_PARTS
        assert all(part["seconds"] >= 0 for part in found[kind].values())

@pytest.mark.parametrize("kind", true_sizes.KINDS)
def test_scoring_is_sampling_again(kind, found):
    noise = found[kind]["noise"]
    assert noise["ratio_is_1"] is True and noise["same_batches"] == 0
    assert 0 <= noise["other_batches"] < 0.1 and noise["batch"] != noise["other_batch"]

@pytest.mark.parametrize("kind", true_sizes.KINDS)
def test_numbers_follow_from_one_another(kind, found):
    parts = found[kind]
    cells = gpu_check.SMALL["pictures"]*parts["make"]["random_steps"]
    for chunk in (1, 8):
        backward = parts[f"backward_{chunk}"]
        assert backward["cells"] == cells and backward["gigabytes"] is None
        assert "CUDA" in backward["needs"]
    epoch, sampling = parts["epoch"], parts["sampling"]
    assert 0 < epoch["ratio"] < math.inf
    assert epoch["ratio"] == pytest.approx(epoch["epoch_seconds"]/epoch["bare_seconds"])
    chunks = -(-cells//gpu_check.EPOCH_CHUNK) # calls: T to sample, S for the reference
    assert epoch["calls"] == gpu_check.SMALL["steps"] + parts["make"]["random_steps"] + chunks
    evaluations = 2*gpu_check.SMALL["sampling_steps"] # of an image, with guidance
    by_hand = sampling["images_per_second"]*evaluations*sampling["tflop_a_sample"]
    assert sampling["tflops"] == pytest.approx(by_hand)
    assert sampling["mfu"] == pytest.approx(by_hand/2)
    assert parts["compile"]["difference"] == 0 # dynamo without a compiler behind it

def test_two_runs_on_one_device_are_equal(found):
    run = found["emoji"]["run"]
    assert run["devices"] == ["cpu", "cpu"] and run["equal"]
    assert run["difference"] == dict(lora=0, reward_mean=0)
    assert len(run["reward_mean"]) == 2

def test_runs_that_differ_are_told_apart():
    one = dict(before=torch.zeros(2), after=torch.tensor([3.0, 4.0]), rewards=[0.1, 0.2])
    other = one | dict(after=torch.tensor([3.0, 3.0]), rewards=[0.1, 0.25])
    apart = gpu_check.run_difference(one, other)
    assert apart == pytest.approx(dict(lora=0.2, reward_mean=0.05))

SIZES = dict(StableDiffusionPipeline=(859_520_964, (4, 64, 64), 0.803),
             StableDiffusionXLPipeline=(2_567_463_684, (4, 128, 128), 6.76),
             StableDiffusion3Pipeline=(2_243_171_520, (16, 128, 128), 11.2))

@pytest.mark.parametrize("kind", true_sizes.KINDS)
def test_the_true_sizes_fit_together(kind):
    from torch.utils.flop_counter import FlopCounterMode
    parameters, shape, operations = SIZES[kind]
    pipe = true_sizes.make_pipeline(kind, torch.bfloat16, "meta")
    assert sum(p.numel() for p in network_of(pipe).parameters()) == parameters
    assert latent_shape(pipe) == shape
    latents, time = torch.empty(1, *shape, device="meta"), torch.ones(1, device="meta")
    condition = family_of(pipe).encode(pipe, ["a fox"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert denoiser_of(pipe)(latents, time, condition).shape == (1, *shape)
    assert counter.get_total_flops()/1e12 == pytest.approx(operations, rel=0.01)
    latents = torch.empty(1, *shape, device="meta", dtype=torch.bfloat16)
    assert family_of(pipe).pixels(pipe, latents).shape == (1, 3, 8*shape[1], 8*shape[2])

def test_random_prompts_differ_and_stay():
    one, two = true_sizes.random_rows(["a fox", "a duck"], 3, 4)
    assert not torch.equal(one, two)
    assert torch.equal(one, true_sizes.random_rows(["a fox"], 3, 4)[0])

def too_large(): raise MemoryError("out of GPU memory while sampling\nmore of it")
def broken(): raise ValueError("a fault")
def never(): raise AssertionError("it would not fit")

@pytest.fixture
def report(tmp_path): return gpu_check.Report(tmp_path/"gpu_check.json", 50, dict(tiny=False))

def test_a_part_that_does_not_fit_stops_no_other(report):
    assert report.part("XL", "noise", 0, too_large) is None
    assert report.part("XL", "epoch", 0, broken) is None
    assert report.part("XL", "compile", 60, never) is None
    assert report.part("XL", "sampling", 10, lambda: dict(steps=3)) == dict(steps=3)
    parts = json.loads(report.path.read_text())["XL"]
    assert parts["noise"]["out_of_memory"] == "out of GPU memory while sampling"
    assert parts["compile"].keys() == {"skipped"}
    assert parts["compile"]["skipped"].startswith("takes about 60 s, ")
    assert parts["sampling"].keys() == {"steps", "seconds"}
    assert report.failed() == ["XL epoch: ValueError: a fault"]

def test_a_cpu_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="needs a GPU; with --tiny"):
        gpu_check.main(["--device", "cpu", "--output", str(tmp_path/"none.json")])
    assert not list(tmp_path.iterdir())

def test_a_tiny_run_keeps_off_the_results(tmp_path):
    assert gpu_check.parse([]).output == table.RESULTS/"gpu_check.json"
    assert table.RESULTS not in gpu_check.parse(["--tiny"]).output.parents
    assert gpu_check.parse(["--output", str(tmp_path/"a.json")]).output == tmp_path/"a.json"

def test_the_page_shows_what_a_gpu_found(found, tmp_path):
    assert "not run on a GPU yet" in table.page(tmp_path)
    (tmp_path/"gpu_check.json").write_text(json.dumps(found))
    assert "not run on a GPU yet" in table.page(tmp_path) # a tiny run says nothing of a GPU
    there = json.loads(json.dumps(found))
    there["about"] |= dict(tiny=False, device="a GPU")
    xl = there["StableDiffusionXLPipeline"]
    xl["noise"], xl["backward_8"] = dict(skipped="no time"), dict(out_of_memory="of it")
    xl["epoch"]["ratio"], xl["compile"]["call_seconds"] = 1.0625, 0.0125
    (tmp_path/"gpu_check.json").write_text(json.dumps(there))
    text = table.page(tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| SDXL |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:9] == ["skipped"]*3 + ["–"]*3 + ["out of memory", "1.062"]
    assert cells[13] == "12.5" and "CPU are equal: the LoRAs lie 0.0%" in text and "a GPU" in text
