"What the measurements of cost share: a table on disk that says where and when, processor seconds, and a run that is ready for its next epoch."
import csv, os, platform, time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent/"results"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")

def machine() -> str: # the processor, and how much of it is used
    lines = open("/proc/cpuinfo") if os.path.exists("/proc/cpuinfo") else ()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, one thread of {os.cpu_count()} cores"

def about(**more: str) -> dict: # columns of every row: where and when it was measured, with which versions
    return dict(date=date.today().isoformat(), machine=machine(), python=platform.python_version()) | {name: version(name) for name in PACKAGES} | more

def write_rows(path: Path, rows: list[dict]): # a CSV file, replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written: {path}")

def seconds(work: Callable[[], object]) -> tuple[float, float]: # of the processor, and of the wall clock
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall

def resident_megabytes() -> float: # the largest so far of this process; unlike `ru_maxrss`, nothing is inherited from the parent
    with open("/proc/self/status") as status: return next(int(line.split()[1])/1024 for line in status if line.startswith("VmHWM"))

def ready(config, reward=None): # a `Trainer` with which `run_epoch` can be called; a run that was begun in that folder goes on
    from prdp_nb.training import Trainer, begin, check_run, restore
    begun = (Path(config.output_dir)/"checkpoints"/"config.yaml").exists()
    trainer = Trainer.resume(config.output_dir, reward) if begun else Trainer(config, reward)
    trainer.folder.mkdir(parents=True, exist_ok=True)
    check_run(trainer)
    restore(trainer, begin(trainer))
    return trainer
