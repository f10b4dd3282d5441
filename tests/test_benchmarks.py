"The benchmark at Stable Diffusion v1.4's size, as far as a CPU goes: the same code on a small UNet, the true sizes counted, and a refusal that says why."
import math, re, subprocess, sys
from pathlib import Path
import pytest, torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"benchmarks"))
import sd14_scale

def cells(line): return [cell.strip() for cell in line.strip("|").split("|")]

def test_the_tiny_setting_measures_every_part():
    done = subprocess.run([sys.executable, ROOT/"benchmarks"/"sd14_scale.py", *"--tiny --device cpu --chunks 1 4 --pictures 2 --steps 2 --batch 2 --repeats 1".split()], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    about, *_, header, rule, a, b, c, d = done.stdout.strip().splitlines()
    assert f"torch {torch.__version__.split('+')[0]}" in about and "bfloat16" in about and set(rule) == set("|-")
    rows = [dict(zip(sd14_scale.COLUMNS, cells(row))) for row in (a, b, c, d)]
    assert cells(header) == list(sd14_scale.COLUMNS.values()) and [(row["adapter"], row["chunk"]) for row in rows] == [("lora", "1"), ("lora", "4"), ("full", "1"), ("full", "4")]
    for row in rows:
        assert row["memory"] == row["sampling_memory"] == "–"
        times = {name: float(row[name]) for name in ("sampling", "reference", "backward", "decoding", "optimizer", "bare_forward", "bare_backward")}
        assert all(0 < time < math.inf for time in times.values())
        by_hand = (50*(times["sampling"] + times["reference"] + times["backward"]) + times["decoding"] + times["optimizer"]/512)/(50*(times["bare_forward"] + times["bare_backward"]))
        assert float(row["ratio"]) == pytest.approx(by_hand, rel=0.01)

def test_a_file_is_written_only_where_it_is_asked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sd14_scale, "table", lambda size, options: f"{size['unet']['sample_size']} {options.chunks}")
    monkeypatch.setattr(sd14_scale, "__file__", str(tmp_path/"sd14_scale.py"))
    sd14_scale.main(["--tiny"])
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == "8 [1, 2, 4, 8, 16, 32]\n"
    sd14_scale.main(["--tiny", "--output"])
    assert (tmp_path/"sd14_scale.md").read_text().endswith("\n\n8 [1, 2, 4, 8, 16, 32]\n")

def test_a_chunk_that_does_not_fit_is_a_row(monkeypatch):
    def too_large(epoch, chunk, options):
        if chunk > 1: raise MemoryError("out of GPU memory while going backward with chunk_size 2")
        return dict(backward=0.3, bare_backward=0.3, memory=9.5)
    class Stub:
        def __init__(self, *_): self.optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    monkeypatch.setattr(sd14_scale, "Epoch", Stub)
    monkeypatch.setattr(sd14_scale, "sampling_row", lambda epoch, options: dict(sampling=0.1, reference=0.1, decoding=0.5, optimizer=5.12, bare_forward=0.2, sampling_memory=4.0))
    monkeypatch.setattr(sd14_scale, "learning_row", too_large)
    small, large = list(sd14_scale.rows(sd14_scale.TINY, sd14_scale.parse(["--chunks", "1", "2"])))[:2]
    assert small["ratio"] == pytest.approx((50*0.5 + 0.5 + 0.01)/25) and large["memory"] == "out of memory" and "ratio" not in large

def test_a_cpu_is_refused_with_the_reason(monkeypatch):
    with pytest.raises(SystemExit) as refused: sd14_scale.main(["--device", "cpu"])
    said = str(refused.value)
    assert said.startswith("this needs a GPU: a UNet of 859,520,964 parameters takes 0.803 TFLOP a sample") and "--tiny" in said
    rate, seconds, minutes = map(float, re.search(r"and (\d+) GFLOP/s.*make that (\d+) s, so (\d+) minutes for one picture of 50", said).groups())
    assert seconds == pytest.approx(803/rate, rel=0.1, abs=1) and minutes == pytest.approx(seconds*100/60, rel=0.1, abs=1)
