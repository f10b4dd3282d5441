"""Room 11: prompt sets of the hub, from files in their true formats in a cache of the hub's layout,
and what a set's size costs. Nothing asks the network."""
import io, json, random, subprocess, sys
from pathlib import Path
import huggingface_hub, pytest
import pyarrow as pa, pyarrow.parquet as pq
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from hub import COMMIT, HubOnThisMachine, hub_on_this_machine
from huggingface_hub import constants, errors
from prdp_nb.algorithm import draw_prompts
from prdp_nb.prompts import (EVALUATION_SETS, HUB_SETS, PROMPT_SETS, hub_prompts, load_prompts,
                             seen_prompts)

ROOT = Path(__file__).resolve().parents[1]
HPDV2 = [dict(human_preference=[1, 0], prompt=f"prompt {i//3 % 700}",
              file_path=[f"{i:08}.jpg", f"{i + 1:08}.jpg"])
         for i in range(4200)] # each prompt six times

def error_of(function, *args, error=FileNotFoundError) -> str:
    with pytest.raises(error) as caught: function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)

@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of the hub, and no network: hf_hub_download is the real one."
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path/"cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    def put(repository, file, content, revision="main"):
        home = tmp_path/"cache"/f"datasets--{repository.replace('/', '--')}"
        contents = {home/"refs"/revision: COMMIT, home/"snapshots"/COMMIT/file: content}
        for path, text in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return put

@pytest.fixture
def pickapic(tmp_path, monkeypatch):
    "The hub's file system, as a folder; counts the bytes that are read."
    class Hub(DirFileSystem):
        bytes_read = 0
        def open(self, *args, cache_type, **kwargs):
            assert cache_type == "none" # each cache of fsspec's reads ahead, into the images
            file = super().open(*args, **kwargs)
            class Counting:
                def __getattr__(self, name): return getattr(file, name)
                def __enter__(self): return self
                def __exit__(self, *error): file.close()
                def read(self, size=-1):
                    data = file.read(size)
                    Hub.bytes_read += len(data)
                    return data
            return Counting()
    hub = Hub(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: hub)
    def put(name, captions, repository="pickapic-anonymous/pickapic_v1"):
        path = tmp_path/"datasets"/repository/"data"/name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = len(captions)
        noise = [random.Random(i).randbytes(100_000) for i in range(number)]
        columns = dict(are_different=[True]*number, caption=captions, jpg_0=noise, jpg_1=noise,
                       label_0=[0.5]*number)
        pq.write_table(pa.table(columns), path, row_group_size=2)
        return path
    put.hub = Hub
    return put

# HPDv2

def test_the_training_set_has_each_prompt_once_in_the_order_of_the_file(cache):
    cache("ymhao/HPDv2", "train.json", json.dumps(HPDV2))
    assert load_prompts("hpdv2_train") == [f"prompt {i}" for i in range(700)]

def test_its_seen_set_is_500_of_them_the_same_every_time(cache):
    cache("ymhao/HPDv2", "train.json", json.dumps(HPDV2))
    seen = load_prompts("hpdv2_seen")
    assert len(seen) == len({*seen}) == 500 and {*seen} < {*load_prompts("hpdv2_train")}
    assert seen == load_prompts("hpdv2_seen")
    assert seen[:3] == ["prompt 330", "prompt 447", "prompt 163"] # for ever, on every machine
    assert sorted(seen_prompts(["a fox", "a duck"])) == ["a duck", "a fox"]

@pytest.mark.parametrize("name, file", [("animation", "anime"), ("concept_art", "concept-art"),
                                        ("painting", "paintings"), ("photo", "photo")])
def test_a_benchmark_set_is_a_json_list(cache, name, file):
    sentences = [f"{name} {i}, “näive”" for i in range(800)]
    content = json.dumps(sentences, ensure_ascii=False)
    cache("zhwang/HPDv2", f"benchmark/{file}.json", content)
    prompts = load_prompts(f"hpdv2_{name}")
    assert prompts == sentences

def test_the_same_file_from_a_folder(cache, tmp_path):
    cache("ymhao/HPDv2", "train.json", json.dumps(HPDV2))
    (tmp_path/"train.json").write_text(json.dumps(HPDV2))
    path, expected = tmp_path/"train.json", load_prompts("hpdv2_train")
    assert load_prompts(path) == load_prompts(path, "prompt") == expected

def test_a_revision_is_part_of_the_address(cache):
    cache("someone/sets", "prompts.txt", "a fox\na fox\na duck\n", revision="v2")
    assert load_prompts("hf://datasets/someone/sets@v2/prompts.txt") == ["a fox", "a duck"]
    other = "hf://datasets/someone/sets/prompts.txt"
    assert other in error_of(load_prompts, other)

# Pick-a-Pic

def test_the_shards_are_read_in_order_and_other_splits_left_alone(pickapic):
    pickapic("train-00001-of-00002-61ee22b59096c60a.parquet", ["a bee", "a fox"])
    pickapic("train-00000-of-00002-abc6ee61d758327b.parquet", ["a fox", "a duck", "a duck"])
    pickapic("test-00000-of-00001-75d003ad32a6ef60.parquet", ["a pig"])
    pickapic("test_unique-00000-of-00001-73a51cbb6488571d.parquet", ["a hen", "an owl"])
    assert load_prompts("pickapic_train") == ["a fox", "a duck", "a bee"]
    assert load_prompts("pickapic_test") == ["a hen", "an owl"]

def test_images_stay_where_they_are(pickapic):
    captions = [f"prompt {i}" for i in range(40)]
    size = pickapic("train-00000-of-00001-b138676ed2d1f52a.parquet", captions).stat().st_size
    assert len(load_prompts("pickapic_train")) == 40
    assert size > 7_000_000 and pickapic.hub.bytes_read < 200_000

def test_another_copy_can_be_named(pickapic):
    repository = "someone/pickapic_no_images"
    pickapic("train-00000-of-00001.parquet", ["a fox"], repository=repository)
    address = f"hf://datasets/{repository}/data/train-*.parquet"
    assert load_prompts(address, "caption") == ["a fox"]

def test_a_wrong_column_names_the_right_ones(pickapic):
    pickapic("train-00000-of-00001.parquet", ["a fox"])
    said = error_of(load_prompts, HUB_SETS["pickapic_train"][0], "text", error=ValueError)
    assert said.startswith("cannot read prompts from hf://datasets/pickapic-anonymous")
    assert "no column 'text'; name one of its columns: are_different, caption, jpg_0" in said

def test_a_local_shard(pickapic):
    path = pickapic("train-00000-of-00001.parquet", ["a fox", "a duck", "a fox"])
    assert load_prompts(path, "caption") == ["a fox", "a duck"]

# When the hub says no

@pytest.mark.parametrize("name", [*HUB_SETS, "hpdv2_seen"])
def test_without_a_network_the_file_to_bring_is_named(cache, name):
    address, column = HUB_SETS["hpdv2_train" if name == "hpdv2_seen" else name]
    said, file = error_of(load_prompts, name), Path(address).name.replace("-*", "")
    option = f" --prompt_column {column}" if column else ""
    holds = f"column {column!r}" if column else "a list of prompts or a column 'prompt'"
    assert said.startswith(f"the hub does not hand out {address} (")
    assert f"--prompts {file}{option}; or" in said and holds in said

class Library(Exception): "As those of httpx, neither an OSError nor a ValueError."
class BadRequest(OSError, ValueError): "As huggingface_hub's BadRequestError."

REFUSALS = {"gone": errors.EntryNotFoundError("404 Client Error.\n\nEntry Not Found"),
            "private": PermissionError("401"), "moved": BadRequest("400"),
            "no line": Library("name or service not known"),
            "half a file": ConnectionError("it broke off")}

@pytest.mark.parametrize("raised", REFUSALS.values(), ids=REFUSALS)
def test_every_way_of_saying_no(monkeypatch, raised):
    def hf_hub_download(*args, **kwargs): raise raised
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    said = error_of(load_prompts, "hpdv2_train")
    assert f"({type(raised).__name__}: {' '.join(str(raised).split())})" in said
    assert "--prompts train.json --prompt_column prompt" in said

def test_a_repository_without_the_split(pickapic):
    pickapic("train-00000-of-00001.parquet", ["a fox"])
    said = error_of(load_prompts, "pickapic_test")
    assert ("(FileNotFoundError: the repository has no such file); "
            "bring the file yourself, test_unique.parquet") in said

@pytest.mark.parametrize("address", ["hf://datasets/a/b", "hf://datasets/a/b.json",
                                     "hf://a/b/train.json", "hf://datasets/a/b/train.zip", "hf://"])
def test_what_is_no_address(address):
    said = error_of(load_prompts, address, error=ValueError)
    assert f"no prompts at {address!r}: expected hf://datasets/OWNER/NAME/FILE" in said

@pytest.mark.parametrize("content, expected", [
    ("[]", "it is empty"), ('{"prompt": "a fox"}', "it holds dict"),
    ('["a fox", 3]', "it holds int and str"), ('["a fox", ', "line 1")])
def test_what_is_wrong_with_a_downloaded_file(cache, content, expected):
    cache("zhwang/HPDv2", "benchmark/photo.json", content)
    said = error_of(load_prompts, "hpdv2_photo", error=ValueError)
    address, _ = HUB_SETS["hpdv2_photo"]
    assert said.startswith(f"cannot read prompts from {address}: ") and expected in said

@pytest.mark.parametrize("missing, address", [
    ("huggingface_hub", "hf://datasets/a/b/c.json"),
    ("pyarrow.parquet", HUB_SETS["pickapic_train"][0])])
def test_a_missing_library_is_not_the_hub_s_fault(pickapic, monkeypatch, missing, address):
    pickapic("train-00000-of-00001.parquet", ["a fox"])
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError): hub_prompts(address)

# huggingface_hub itself, asking a hub on this machine

def parquet(captions) -> bytes:
    out = io.BytesIO()
    noise = [random.Random(i).randbytes(200_000) for i in range(len(captions))]
    pq.write_table(pa.table(dict(jpg_0=noise, caption=captions)), out, row_group_size=2)
    return out.getvalue()

@pytest.fixture
def load_from_this_machine(tmp_path):
    files = {"data/train-00000-of-00002-aa.parquet": parquet(["a fox", "a fox", "a duck"]*4),
             "data/train-00001-of-00002-bb.parquet": parquet(["a bee"]*12),
             "data/test-00000-of-00001-cc.parquet": parquet(["a pig"]),
             "train.json": json.dumps(HPDV2).encode()}
    code = """import json, sys
from prdp_nb.prompts import load_prompts
try: print(json.dumps(load_prompts(*sys.argv[1:])))
except FileNotFoundError as error: print(json.dumps(str(error)))"""
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    with hub_on_this_machine({"a/b": files}, tmp_path) as environment:
        def load(*args):
            done = subprocess.run([*command, *args], cwd=ROOT, env=environment,
                                  capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
            return json.loads(done.stdout)
        yield load

def test_columns_are_fetched_from_files_on_the_hub(load_from_this_machine):
    prompts = load_from_this_machine("hf://datasets/a/b/data/train-*.parquet", "caption")
    assert prompts == ["a fox", "a duck", "a bee"]
    assert sum(map(len, HubOnThisMachine.repositories["a/b"].values())) > 5_000_000
    assert HubOnThisMachine.bytes_sent < 200_000

def test_a_file_is_downloaded_once(load_from_this_machine):
    assert len(load_from_this_machine("hf://datasets/a/b/train.json")) == 700
    sent = HubOnThisMachine.bytes_sent
    assert len(load_from_this_machine("hf://datasets/a/b/train.json")) == 700
    size = len(HubOnThisMachine.repositories["a/b"]["train.json"])
    assert HubOnThisMachine.bytes_sent - sent < size/10

@pytest.mark.parametrize("address", ["hf://datasets/no/body/train.json",
                                     "hf://datasets/no/body/data/train-*.parquet",
                                     "hf://datasets/a/b/none.json"])
def test_what_is_not_on_the_hub(load_from_this_machine, address):
    assert load_from_this_machine(address).startswith(f"the hub does not hand out {address} (")

# What is loaded, and what it costs

def test_evaluation_sets_are_known():
    for training, tests in EVALUATION_SETS.items():
        assert {training, *tests["seen"], *tests["unseen"]} <= {*PROMPT_SETS}
    unseen = ("pickapic_test", "hpdv2_animation", "hpdv2_concept_art", "hpdv2_painting",
              "hpdv2_photo")
    assert EVALUATION_SETS["hpdv2_train"] == dict(seen=("hpdv2_seen",), unseen=unseen)
    assert EVALUATION_SETS["pickapic_train"] == dict(seen=(), unseen=unseen)

def test_small_sets_load_nothing():
    code = """import sys
from prdp_nb.prompts import load_prompts
assert load_prompts("emoji_animals") == load_prompts("animals")
assert load_prompts("emoji_names") == load_prompts("animal_names")
print(*{"prdp_nb.emoji", "huggingface_hub", "pyarrow", "pandas"} & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == []

class Counted(random.Random):
    taken = 0
    def getrandbits(self, bits):
        Counted.taken += 1
        return super().getrandbits(bits)

class Reads(list):
    reads = 0
    def __getitem__(self, i):
        Reads.reads += 1
        return super().__getitem__(i)
    def __iter__(self): raise AssertionError("the whole set was walked through")

def operations_of_a_draw(prompts: list, draws: int = 200): # reads of the set, random numbers
    Reads.reads = Counted.taken = 0
    for epoch in range(draws): draw_prompts(prompts, 64, 0, epoch)
    return Reads.reads/draws, Counted.taken/draws

def test_a_draw_does_no_more_work_in_a_hundred_times_as_many_prompts(monkeypatch):
    monkeypatch.setattr("prdp_nb.prompts.random.Random", Counted)
    small = operations_of_a_draw(Reads(range(10_000)))
    large = operations_of_a_draw(Reads(range(1_000_000)))
    assert small[0] == large[0] == 64
    assert large[1]/small[1] <= 1.05

def test_a_million_lines_are_not_held_twice(tmp_path):
    import tracemalloc
    lines = [f"a painting of scene number {i:07}".ljust(100, "x") for i in range(50_000)]
    (tmp_path/"lines.txt").write_text("\n".join(lines))
    text = 50_000*(sys.getsizeof(lines[0]) + 8) # the strings and the list of them
    tracemalloc.start()
    try:
        prompts = load_prompts(tmp_path/"lines.txt")
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert prompts == lines and peak < 2*text and peak*20 < 500e6
