"""A command in a process of its own, forked from one that has imported the heavy packages and done nothing else: each
starts clean, and none waits for the imports."""
import gc, os, socket, subprocess, sys
from multiprocessing import get_context
from pathlib import Path

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload("""torch torchvision accelerate diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion peft
transformers.models.clip.modeling_clip transformers.models.clip.image_processing_clip open_clip pandas scipy.stats matplotlib.pyplot nbdev.test""".split())

def in_child(function, arguments: tuple, environment: dict, folder: Path):
    for number, name in enumerate(("stdout", "stderr"), start=1): os.dup2(os.open(folder/name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    gc.freeze() # no collection goes through what the imports left
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(function(*arguments))

def started(function, arguments: tuple, environment: dict, folder: Path):
    child = FORKS.Process(target=in_child, args=(function, arguments, environment, folder))
    child.start()
    return child

def finished(child, arguments: tuple, folder: Path, timeout: float) -> subprocess.CompletedProcess:
    child.join(timeout)
    if child.is_alive():
        child.kill()
        raise subprocess.TimeoutExpired(child.name, timeout, *((folder/name).read_bytes() for name in ("stdout", "stderr")))
    out, err = ((folder/name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, child.exitcode, out, err)

def run_forked(function, *arguments, environment: dict, folder: Path, timeout: float = 600) -> subprocess.CompletedProcess:
    "As `subprocess.run` of a command that calls `function(*arguments)`; what it prints is kept in `folder`."
    return finished(started(function, arguments, environment, folder), arguments, folder, timeout)

def run_pair(function, *arguments, environment: dict, folder: Path, timeout: float = 300) -> list[subprocess.CompletedProcess]:
    "As torchrun with two processes, each of which calls `function(*arguments)`; they speak over gloo."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        both = environment | dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), ACCELERATE_USE_CPU="true")
    places = [folder/f"rank_{rank}" for rank in range(2)]
    for place in places: place.mkdir()
    children = [started(function, arguments, both | dict(RANK=str(rank), LOCAL_RANK=str(rank)), place) for rank, place in enumerate(places)]
    try: return [finished(child, arguments, place, timeout) for child, place in zip(children, places)]
    finally:
        for child in children: child.kill()

def run_notebook(notebook: Path, setting: str, folder: Path, timeout: float = 600):
    "What `nbdev_test --path notebook` does; raises `AssertionError` with its traceback where a cell fails."
    from nbdev.test import nbdev_test
    done = run_forked(nbdev_test, notebook, "", 0, environment=os.environ | dict(PRDP_RUNS=setting), folder=folder, timeout=timeout)
    assert done.returncode == 0 and "Success." in done.stdout, done.stdout[-2000:] + done.stderr[-8000:]
