"""Rooms 11, 16, 20, 21 and 26: files that were changed at random. What is read is what independent
readers find in the file, or one line says what is wrong with it; no other error ever escapes.

`PRDP_FUZZ=20000 pytest tests/test_fuzz.py` draws ten times as many, `PRDP_SEED=1` others."""
import csv, io, json, math, os, random, re, shutil, warnings
from pathlib import Path
import numpy as np, pandas as pd, pyarrow, pyarrow.parquet, pytest, yaml
from PIL import Image
from prdp_nb.commands import SAID, evaluate_command, sample_command, train_command
from prdp_nb.comparison import COLUMNS, Evaluation, dump_evaluation, load_evaluation, read_table
from prdp_nb.config import Config
from prdp_nb.prompts import load_prompts
from prdp_nb.runs import damage, newest_intact, read_metrics, seal
from prdp_nb.training import Trainer

pytestmark = pytest.mark.usefixtures("quick_pictures")

CASES, SEED = int(os.environ.get("PRDP_FUZZ", 2000)), os.environ.get("PRDP_SEED", "0")

def pieces(dice: random.Random) -> bytes:
    "Something that formats care about."
    some = [b"\0", b"\r", b"\n", b"\r\n", b"\t", b" ", b'"', b"'", b",", b";", b":", b"[", b"]",
            b"{", b"}", b"\\", b"#", b"_", b"-", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
            b"\\u0000", b"\\ud83e", '狐'.encode(), b"&a ", b"*a", b"!!python/none ", b"null", b"nan",
            b"inf", b"true", b"- ", b"? ", b"|\n", b"%", b'","', b'", "', b"}\n{", b"\x85", b"\xc2\x85",
            b"\xe2\x80\xa8", b"\x1a", b"\x0c"]
    return b"".join(dice.choices(some, k=dice.randint(1, 3)))

NUMBERS = [b"1e999", b"-1", b"0", b"nan", b"9"*400, b"9"*5000, b"1_0", b"0x10", b"1:30", b"1e-400",
           b"2.5", b"-.inf", b".5", b"1e3", b"2001-13-01", b"0o7", b"4294967296", "٣".encode()]

def mutated(content: bytes, dice: random.Random) -> bytes:
    "The file after one or two accidents."
    for _ in range(dice.choice([1, 1, 2])):
        content = content or b"\n"
        at, lines = dice.randrange(len(content)), content.splitlines(keepends=True)
        end, line = at + dice.randint(1, 8), dice.randrange(len(lines))
        other = dice.randrange(len(lines))
        swapped = [*lines]
        swapped[line], swapped[other] = swapped[other], swapped[line]
        numbers = [*re.finditer(rb"[0-9.]+", content)] or [re.match(b"", content)]
        number = dice.choice(numbers)
        text = content.decode("utf-8", "replace")
        content = dice.choice([
            lambda: content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1:],
            lambda: content[:at] + content[end:],
            lambda: content[:at],
            lambda: content[:at] + pieces(dice) + content[at:],
            lambda: content[:at] + pieces(dice) + content[end:],
            lambda: b"".join(lines[:line + 1] + lines[line:]),
            lambda: b"".join(swapped),
            lambda: b"".join(lines[:line] + lines[line + 1:]),
            lambda: content[:number.start()] + dice.choice(NUMBERS) + content[number.end():],
            lambda: content[:at] + dice.choice([b"[", b"{", b'{"a":', b"(", b"- "])*dice.choice(
                [3, 2000]) + content[at:],
            lambda: text.encode(dice.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])),
            lambda: text.replace("\n", dice.choice(["\r", "\r\n", "\n\n", " "])).encode(),
            lambda: content + content])()
    return content

def attempt(read):
    "What is read, or None where one line says why it is not."
    try: return read()
    except SAID as error:
        said = " ".join(map(str.strip, str(error).splitlines()))
        assert said and said.encode() and len(said) < 3000, (len(said), said[:300])
        return None

def fuzz(name: str, content: bytes, path: Path, read, expected):
    """Read `CASES` mutated files. `expected(content)` is what an independent reader finds, None
    where it refuses the file. Some must be read, and some be refused."""
    counts, wrong = [0, 0], []
    for case in range(CASES):
        changed = mutated(content, random.Random(f"{SEED} {name} {case}"))
        path.write_bytes(changed)
        try: found = attempt(read)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt): raise
            wrong.append((case, changed[:300], repr(error)[:300]))
            continue
        counts[found is None] += 1
        if found is not None and found != (wanted := expected(changed)):
            wrong.append((case, changed[:300], str(found)[:300], str(wanted)[:300]))
    assert not wrong, f"{len(wrong)} of {CASES}: " + "\n".join(map(str, wrong[:8]))
    assert min(counts) > CASES/50, counts

# Prompts

PROMPTS = ["a fox", "a duck, digital art", 'a "sly" bee', "狐 🦊", "null", "a cow; oil", "007"]

def valid(suffix: str) -> bytes:
    table = pd.DataFrame(dict(id=range(len(PROMPTS)), prompt=PROMPTS))
    if suffix == ".txt": return "\n".join(PROMPTS).encode()
    if suffix == ".csv": return table.to_csv(index=False).encode()
    if suffix == ".json": return json.dumps(PROMPTS, indent=0, ensure_ascii=False).encode()
    if suffix == ".jsonl": return table.to_json(orient="records", lines=True).encode()
    return "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS).encode()

def one_key(pairs: list) -> dict:
    if len(pairs) != len(dict(pairs)): raise ValueError("a key twice")
    return dict(pairs)

def strict_json(text: str): return json.loads(text, object_pairs_hook=one_key)

def json_rows(rows) -> list:
    if {type(row) for row in rows} == {dict}: return [row.get(column_of(rows[0])) for row in rows]
    return rows

def column_of(names) -> str: return [*names][0] if len(names) == 1 else "prompt"

def csv_rows(text: str, **options) -> list[list[str]]: # the header first; all of one length
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, **options)
    rows = [row for row in rows if "".join(row).strip()]
    if len({*map(len, rows)}) > 1: raise ValueError("rows of several lengths")
    return rows

def csv_prompts(text: str) -> list[str]:
    header, *rows = csv_rows(text, skipinitialspace=True)
    names = [name.strip() for name in header]
    [at] = [i for i, name in enumerate(names) if name == "prompt"
            or len([*filter(None, names)]) == 1 and name.lower() in ("prompt", "prompts")]
    return [row[at] for row in rows]

def text_prompts(text: str) -> list[str]:
    lines = re.split("\r\n|\r|\n", text)
    if any(line.startswith("# ") for line in lines): raise ValueError("a comment")
    return lines

def json_lines(text: str) -> list:
    return json_rows([strict_json(line) for line in text_prompts(text) if line.strip()])

ORACLES = {".txt": text_prompts, ".csv": csv_prompts, ".json": lambda text: json_rows(
    strict_json(text)), ".jsonl": json_lines, " text.jsonl": json_lines}

def prompts_of(content: bytes, parse) -> list[str] | None:
    try: entries = parse(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, csv.Error): return None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        return None
    if re.search("[\0\ud800-\udfff]", "".join(entries)): return None
    return [*dict.fromkeys(filter(None, map(bare, entries)))] or None

def bare(entry: str) -> str: # without what cannot be seen at its ends
    def shows(at: int) -> bool: return not entry[at].isspace() and entry[at] not in "\u200b\ufeff"
    seen = [*filter(shows, range(len(entry)))]
    return entry[seen[0]:seen[-1] + 1] if seen else ""

@pytest.mark.parametrize("suffix", ORACLES)
def test_files_of_prompts(suffix, tmp_path):
    path = tmp_path/f"own{suffix}"
    fuzz(suffix, valid(suffix), path, lambda: load_prompts(path),
         lambda content: prompts_of(content, ORACLES[suffix]))

def test_files_of_prompts_in_parquet(tmp_path):
    "Pages with checksums are compared with them, so what is read is what was written."
    path, content = tmp_path/"own.parquet", io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(id=[*range(7)], prompt=PROMPTS)), content,
                                write_page_checksum=True)
    fuzz("parquet", content.getvalue(), path, lambda: load_prompts(path), lambda _: PROMPTS)

# Configurations

FIELDS = dict(epochs=3, kl_weight=2.5, reward="colourfulness", model="emoji", online=True,
              lora_targets=["to_q", "to_v"], device=None, seed=7, output_dir="runs/own")

class OneKey(yaml.SafeLoader): "YAML whose keys are unique, as its specification asks."

def unique_mapping(loader, node):
    return one_key([(loader.construct_object(key, deep=True), loader.construct_object(value, True))
                    for key, value in node.value])

OneKey.add_constructor("tag:yaml.org,2002:map", unique_mapping)

def as_read(value, example):
    "A value of YAML as the type of a field."
    if example is None and str(value).lower() in ("none", "null"): return None # text that says so
    if isinstance(example, tuple): return tuple([value] if isinstance(value, str) else value)
    if isinstance(example, bool): return {"true": True, "false": False}[str(value).lower()]
    if isinstance(example, (int, float)): return type(example)(value)
    return value

def fields_of(content: bytes) -> dict | None:
    try: values = yaml.load(content.decode(), OneKey) or {}
    except Exception: return None
    defaults = vars(Config())
    if not isinstance(values, dict) or not {*values} <= {*defaults}: return None
    given = {name: as_read(value, defaults[name]) for name, value in values.items()}
    return defaults | given

def test_configurations(tmp_path):
    path, content = tmp_path/"config.yaml", yaml.safe_dump(FIELDS, sort_keys=False).encode()
    assert fields_of(content) == vars(Config(**FIELDS))
    fuzz("yaml", content, path, lambda: vars(Config.load(path)), fields_of)

# Tables

ROWS = [dict(epoch=epoch, reward_queries=4*epoch, reward_mean=math.pi*epoch, kl=float("nan"),
             loss=-1e-300, grad_norm=float("inf"), seconds=1.25) for epoch in (1, 2, 3)]
NUMBER = r"\s*[+-]?(\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|nan|inf|infinity)\s*"

def number(text: str) -> float:
    if not re.fullmatch(NUMBER, text, re.IGNORECASE): raise ValueError(text)
    return float(text)

def plain(table: pd.DataFrame) -> dict: # column -> values; NaN equals NaN
    return {name: [repr(value) for value in column] for name, column in table.items()}

def table_of(content: bytes, read_cell) -> dict | None:
    try:
        header, *rows = csv_rows(content.decode("utf-8-sig"))
        if "\0" in content.decode() or len({*header}) < len(header): return None
        return {name: [repr(read_cell(name, row[i])) for row in rows]
                for i, name in enumerate(header)}
    except (ValueError, OverflowError, csv.Error): return None

def test_metrics(tmp_path):
    path, content = tmp_path/"metrics.csv", pd.DataFrame(ROWS).to_csv(index=False, na_rep="nan")
    fuzz("metrics", content.encode(), path, lambda: plain(read_metrics(tmp_path)),
         lambda found: table_of(found, lambda name, text: number(text)))

EVALUATION = [dict(experiment="001", method="prdp", seed=0, prompt_set="animals", prompt=prompt,
                   scorer="colourfulness", base=0.5, tuned=math.pi) for prompt in PROMPTS]

def evaluation_cell(name: str, text: str):
    if name in ("base", "tuned"): return number(text)
    if name != "seed": return text
    if re.fullmatch(r"\s*[+-]?\d+\s*", text): return int(text)
    return int(number(text)) if number(text).is_integer() else None

def evaluation_of(content: bytes) -> dict | None:
    found = table_of(content, evaluation_cell)
    return found if found and {*COLUMNS} <= {*found} else None

def test_tables_of_evaluations(tmp_path):
    path, content = tmp_path/"evaluation.csv", pd.DataFrame(EVALUATION).to_csv(index=False)
    path.write_text(content, encoding="utf-8")
    assert plain(read_table(path)) == evaluation_of(content.encode())
    fuzz("evaluation", content.encode(), path, lambda: plain(read_table(path)), evaluation_of)

# The run folder

def test_the_measurement_of_the_base(tmp_path):
    "A damaged one is none, and is made anew."
    path, dice = tmp_path/"before.safetensors", np.random.default_rng(0)
    images = [Image.fromarray(dice.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(2)]
    base = Evaluation(PROMPTS, dict(art=dice.normal(size=(7, 2))), images)
    origin = dict(prompts=PROMPTS, scorers=["art"], dtype="float32")
    def plainly(found):
        return found and (found.prompts, found.scores["art"].tolist(),
                          [np.asarray(image).tolist() for image in found.images])
    fuzz("base", dump_evaluation(base, origin), path,
         lambda: plainly(load_evaluation(path, origin)), lambda _: plainly(base))

def checkpoint(folder: Path) -> Path:
    (folder/"unet").mkdir(parents=True)
    for name in ("a.txt", "unet/b.txt"): (folder/name).write_text("content " + name)
    seal(folder)
    return folder

@pytest.mark.parametrize("name", ["a.txt", "unet/b.txt", "checksums.json"])
def test_files_of_a_checkpoint(name, tmp_path):
    """A checkpoint is intact only where each of its files is. A list of checksums may have lost an
    entry, and the files are still what they were."""
    folder = checkpoint(tmp_path/"checkpoints/epoch_0001")
    path = folder/name
    whole, intact = path.read_bytes(), 0
    for case in range(CASES):
        changed = mutated(whole, random.Random(f"{SEED} {name} {case}"))
        path.write_bytes(changed)
        said = damage(folder)
        intact += not said
        if name != "checksums.json": assert bool(said) == (changed != whole), (changed, said)
    assert intact < CASES/2
    path.write_bytes(b"[]" if name == "checksums.json" else b"")
    with pytest.raises(ValueError, match="none of the 1 checkpoints"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        newest_intact(tmp_path)

# Whole runs

TINY = dict(epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, save_every=1,
            reward="colourfulness", eval_images_per_prompt=1, eval_rewards=(), learning_rate=1e-2)

@pytest.fixture(scope="module")
def run(tiny_model, prompt_file, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("fuzz")
    given = dict(model=str(tiny_model), prompts=str(prompt_file), output_dir=str(place/"run"))
    return Trainer(Config(**TINY | given)).train()

def outcome(folder: Path) -> dict:
    "What must be the same wherever a command ends well."
    tables = {name: [{**row, "seconds": ""} for row in csv.DictReader(io.StringIO(
                  (folder/name).read_text(encoding="utf-8"), newline=""))]
              for name in ("metrics.csv", "evaluation.csv")}
    weights = {path.name: path.read_bytes() for path in (folder/"final").glob("*.safetensors")}
    return tables | weights

def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*")
                  if path.is_file() and path.name != ".lock" and path.suffix != ".png")

def commands_of(folder: Path) -> dict:
    image = str(folder.parent/"fox.png")
    return dict(resume=lambda: train_command(["--resume", str(folder)]),
                sample=lambda: sample_command([str(folder), "a fox", "--output", image]),
                evaluate=lambda: evaluate_command([str(folder), "--output",
                                                   str(folder/"evaluation.csv")]))

@pytest.mark.parametrize("case", range(max(1, CASES//50)))
def test_commands_on_a_run_with_a_changed_file(case, run, tmp_path, capsys):
    dice = random.Random(f"{SEED} run {case}")
    folder, names = shutil.copytree(run, tmp_path/"run"), files_of(run)
    name = names[case % len(names)]
    (folder/name).write_bytes(mutated((run/name).read_bytes(), dice))
    kind = ("resume", "sample", "evaluate")[case//len(names) % 3]
    before = {path: (folder/path).read_bytes() for path in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = commands_of(folder)[kind]()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prdp_")]
    assert status == len(said) and status in (0, 1), said
    if kind == "resume" and status == 0: assert outcome(folder) == outcome(run)
    used = name.startswith("final/") and kind != "resume" and not name.endswith("checksums.json")
    if used: assert status == ((folder/name).read_bytes() != (run/name).read_bytes())
    if kind == "evaluate" and status == 0: del before["evaluation.csv"]
    if kind != "resume" or status: assert all((folder/path).read_bytes() == content
                                              for path, content in before.items())

def test_a_wrong_bit_in_a_model_is_no_model(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path/"run")
    for name in (path for path in files_of(run) if path.startswith("final/")):
        whole = (folder/name).read_bytes()
        (folder/name).write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
        for kind in ("sample", "evaluate"):
            assert commands_of(folder)[kind]() == 1, name
            assert f"{folder/'final'} is damaged (" in capsys.readouterr().err
        (folder/name).write_bytes(whole)
    assert commands_of(folder)["sample"]() == 0
