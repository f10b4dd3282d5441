"""What a prompt set of a million costs: reading it, and drawing from it.

    python benchmarks/prompts.py

Reads a file of 1,000,000 lines in a fresh process and prints the time to the first batch and the memory it took. Then draws batches of 64 from sets of
10,000 and of 1,000,000 prompts in turn, and prints processor times (the median of many short rounds) and their ratio.
"""
import random, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from prdp_nb.algorithm import draw_prompts

LINES, BATCH, ROUNDS, DRAWS = 1_000_000, 64, 200, 20
FIRST_BATCH = """
import resource, sys, time
import psutil
from prdp_nb.algorithm import draw_prompts
from prdp_nb.prompts import load_prompts
before, wall, cpu = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
draw_prompts(load_prompts(sys.argv[1]), 64, seed=0, epoch=0)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1024 if sys.platform == "linux" else 1)
print(time.perf_counter() - wall, time.process_time() - cpu, (peak - before)/1e6)
"""

def sentence(i: int) -> str: # of 100 characters, the length of many a prompt people write
    return f"a painting of scene number {i:07}".ljust(100, "x")

def first_batch(path: Path) -> tuple[float, float, float]: # seconds, seconds of the processor, MB of extra memory at the peak
    done = subprocess.run([sys.executable, "-c", FIRST_BATCH, path], capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))

def draw_times(small, large) -> tuple[float, float]: # median processor seconds of a draw from each; rounds alternate, so that a busy machine slows both
    times = ([], [])
    for i in range(ROUNDS):
        for prompts, seconds in zip((small, large), times):
            start = time.process_time()
            for epoch in range(i*DRAWS, (i + 1)*DRAWS): draw_prompts(prompts, BATCH, 0, epoch)
            seconds.append((time.process_time() - start)/DRAWS)
    return tuple(map(statistics.median, times))

def random_numbers(size: int, draws: int = 1000) -> float: # taken by a draw of positions in a set of that size, on average
    taken = 0
    class Counting(random.Random):
        def getrandbits(self, bits):
            nonlocal taken
            taken += 1
            return super().getrandbits(bits)
    for epoch in range(draws): Counting(f"prompts 0 {epoch}").sample(range(size), BATCH)
    return taken/draws

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"million.txt"
        with open(path, "w") as file: file.writelines(f"{sentence(i)}\n" for i in range(LINES))
        wall, cpu, memory = first_batch(path)
    print(f"first {BATCH} of {LINES:,} lines of 100 characters: {wall:.1f} s, {cpu:.1f} s of the processor, {memory:.0f} MB of memory")
    prompts = [sentence(i) for i in range(LINES)]
    few, many = random_numbers(10_000), random_numbers(LINES)
    print(f"random numbers a draw    10,000: {few:7.1f}     1,000,000: {many:7.1f}     ratio {many/few:.2f}")
    for name, small, large in (("positions", range(10_000), range(LINES)), ("prompts", prompts[:10_000], prompts)):
        few, many = draw_times(small, large)
        print(f"{name:9} a draw         10,000: {few*1e6:5.1f} µs     1,000,000: {many*1e6:5.1f} µs     ratio {many/few:.2f}, difference {1e6*(many - few):+.1f} µs")
    print(f"an epoch of one second with a draw from 1,000,000 instead of 10,000: ratio {(1 + many - few):.6f}")
