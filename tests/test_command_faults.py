"""Rooms 20, 22, 23, 26 and 30: what a command line, a YAML file and the environment may hold, which
scorers a table has, how an error of a library ends a command, and runs of another folder."""
import io, pickle, shutil, sqlite3, zipfile
from dataclasses import replace
import httpx, pyarrow.parquet, pytest, safetensors.torch, tokenizers, torch, yaml
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from PIL import Image
from prdp_nb.commands import (
    evaluate_command, evaluate_parser, read_config, run_command, sample_command, train_command)
from prdp_nb.comparison import load_evaluation, read_table
from prdp_nb.config import Config
from prdp_nb.emoji import load_pipeline
from prdp_nb.evaluation import evaluate_runs
from prdp_nb.experiments import same_place, same_settings, train_runs
from prdp_nb.processes import check_launcher, make_accelerator
from prdp_nb.learner import configured_policy
from prdp_nb.finetuning import save_finetuned
from prdp_nb.prompts import load_prompts
from prdp_nb.rewards import RewardError, as_reward
from prdp_nb.runs import read_metrics
from prdp_nb.scoring import EMOJI_SCORERS, BeforeAfter, scorer_names

TINY = dict(epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
            learning_rate=1e-2, clip_range=1e-2, reward="colourfulness", eval_images_per_prompt=1,
            save_every=1, device="cpu")
OWN = ["a bill of 5$ and one of 10$", "狐 in the snow, 🦊", "a portrait, highly detailed, "*10]
SENTENCES = ["a painting of a fox", "a painting of a cow"]

def flags(**fields): # of the command line
    return [part for name, value in fields.items() for part in (f"--{name}", str(value))]

# Which scorers

@pytest.mark.parametrize("fields, prompts, expected", [
    (dict(), SENTENCES, EMOJI_SCORERS),
    (dict(), ["fox", "A Painting Of A Fox "], EMOJI_SCORERS),
    (dict(), OWN, ()),
    (dict(), [*SENTENCES, OWN[0]], ()), # EmojiJudge reads all or none
    (dict(model="someone/sd"), SENTENCES, ()),
    (dict(model="someone/sd"), OWN, ()),
    (dict(model="someone/sd", eval_rewards=("emoji_judge",)), OWN, ("emoji_judge",)),
    (dict(eval_rewards=()), SENTENCES, ())])
def test_default_scorers_belong_to_one_world(fields, prompts, expected):
    assert scorer_names(Config(**fields), prompts) == expected

def test_every_preset_and_set_has_the_scorers_it_had():
    before = ("emoji_score", "emoji_aesthetic", "emoji_judge", "emoji_truth")
    for name in Config.presets():
        config, emoji = Config.preset(name), name.startswith("emoji")
        prompts = load_prompts(config.prompts)[:1000] if emoji else OWN
        assert scorer_names(config, prompts) == (before if emoji else ())

def test_the_table_of_a_run_asks_them(tmp_path):
    (tmp_path/"own.txt").write_text("\n".join(OWN), encoding="utf-8")
    def asked(prompts, **fields):
        config = Config(**fields, reward="colourfulness")
        return [*BeforeAfter(config, as_reward("colourfulness"), prompts, None, torch.device("cpu")).scorers]
    assert asked(SENTENCES) == [*EMOJI_SCORERS, "colourfulness"]
    assert asked(OWN) == asked(SENTENCES, eval_prompts=str(tmp_path/"own.txt")) == ["colourfulness"]
    assert asked(OWN, eval_prompts="emoji_animals") == [*EMOJI_SCORERS, "colourfulness"]

@pytest.fixture(scope="module")
def own_run(tmp_path_factory, tiny_model):
    "A model that is not the package's, prompts of its user's own, and no scorers named."
    folder = tmp_path_factory.mktemp("own")
    (folder/"own.txt").write_text("\n".join(OWN), encoding="utf-8")
    fields = TINY | dict(model=tiny_model, prompts=folder/"own.txt", output_dir=folder/"run")
    assert train_command(flags(**fields)) == 0
    return folder

@pytest.mark.filterwarnings("ignore:.*shows boxes for")
def test_another_model_trains_on_prompts_of_its_own(own_run, capsys):
    run = own_run/"run"
    assert [*read_table(run/"evaluation.csv").scorer.unique()] == ["colourfulness"]
    assert {*read_table(run/"evaluation.csv").prompt} == {prompt.strip() for prompt in OWN}
    with Image.open(run/"gallery.png") as gallery: assert gallery.width > 200
    assert evaluate_command([str(run), "--plot", str(own_run/"gains.png")]) == 0
    assert "| own.txt | colourfulness | 3 |" in capsys.readouterr().out.replace(f"{own_run}/", "")

def test_each_set_of_an_evaluation_has_its_own_scorers(tmp_path, own_run):
    run = tmp_path/"run"
    config = Config(**TINY | dict(prompts=str(own_run/"own.txt"), output_dir=str(run)))
    run.mkdir()
    config.save(run/"config.yaml")
    pipe = load_pipeline()
    save_finetuned(pipe, configured_policy(config, pipe), run/"final")
    (tmp_path/"sentences.txt").write_text("\n".join(SENTENCES))
    sets = [str(own_run/"own.txt"), str(tmp_path/"sentences.txt")]
    found = evaluate_runs(run, sets, images_per_prompt=1).groupby("prompt_set").scorer.unique()
    assert {*found[sets[0]]} == {"colourfulness"} and {*found[sets[1]]} == {*EMOJI_SCORERS}

# What a command line can say

@pytest.mark.parametrize("text", ["-0.5*colourfulness", "-.5*colourfulness", "-2*http://a.example/x",
                                  "-1e-3*colourfulness + emoji_score", "-0.5*http://a/x#timeout=3"])
def test_a_weight_below_zero_comes_first(text):
    assert read_config(["--reward", text]) == read_config([f"--reward={text}"])
    assert read_config(["--reward", text, "--seed", "3"]).reward == text
    options = evaluate_parser().parse_args(["run", "--rewards", "emoji_score", text, "--device", "cpu"])
    assert options.rewards == ["emoji_score", text] and options.device == "cpu"

@pytest.mark.parametrize("line, said", [
    ("--kl_weight -1e-3", "kl_weight must be above 0, not -0.001"),
    ("--seed -1", "seed must be at least 0, not -1"),
    ("--epochs -.5", "epochs must be of type int, not '-.5'")])
def test_a_number_below_zero_is_a_value(line, said):
    with pytest.raises(ValueError, match=said.replace(".", "[.]")): read_config(line.split())

def test_a_flag_is_still_a_flag(capsys):
    for line in ("--reward --seed 3", "--reward -x", "--epochz -0.5", "-0.5"):
        with pytest.raises(SystemExit) as ended: read_config(line.split())
        assert ended.value.code == 2
    assert "expected one argument" in capsys.readouterr().err

@pytest.mark.parametrize("none", ["none", "None", "NONE", "null"])
@pytest.mark.parametrize("name", [name for name, field in Config.__dataclass_fields__.items()
                                  if "None" in str(field.type) and "tuple" not in str(field.type)])
def test_none_can_be_said(name, none, tmp_path):
    (tmp_path/"given.yaml").write_text(f"epochs: 3\n{name}: {none}\n")
    start = replace(Config(), **{name: dict(eta=0.5, resolution=64, max_sequence_length=8).get(name, "tensorboard")})
    start.save(tmp_path/"start.yaml")
    for config in (read_config([f"--{name}", none]), Config(**{name: none}),
                   read_config(["--config", str(tmp_path/"start.yaml"), f"--{name}", none])):
        assert getattr(config, name) is None
    assert getattr(Config.load(tmp_path/"given.yaml"), name) is None

def test_no_scorers_can_be_said(tmp_path):
    for given in (["--eval_rewards"], ["--eval_rewards", "none"]):
        assert read_config(given).eval_rewards == ()
    for text, expected in {"none": (), "[]": (), "null": None, "[a]": ("a",), "a": ("a",)}.items():
        (tmp_path/"a.yaml").write_text(f"eval_rewards: {text}\n")
        assert Config.load(tmp_path/"a.yaml").eval_rewards == expected
    for names in (None, (), ("a", "b")):
        Config(eval_rewards=names).save(tmp_path/"a.yaml")
        assert Config.load(tmp_path/"a.yaml").eval_rewards == names

@pytest.mark.parametrize("text", ["[]", "''", '""', "0", "0.0", "false", "{[]: 1}", "["*1000])
def test_a_file_that_holds_no_fields(text, tmp_path):
    (tmp_path/"a.yaml").write_text(text)
    with pytest.raises(ValueError) as caught: read_config(["--config", str(tmp_path/"a.yaml")])
    said = str(caught.value)
    assert said.startswith(f"{tmp_path/'a.yaml'} ") and "\n" not in said
    assert "expected lines of the form `field: value`" in said or "is not YAML" in said

@pytest.mark.parametrize("text", ["seed: 010", "epochs: 1:30", "seed: 0x10", "kl_weight: 1:30.5",
                                  "learning_rate: -010.5", "prompts: 007"])
def test_numbers_that_yaml_1_1_reads_as_others_are_refused(text, tmp_path):
    (tmp_path/"a.yaml").write_text(text)
    with pytest.raises(ValueError, match="is no plain number; a text is put in quotes"):
        Config.load(tmp_path/"a.yaml")

def test_plain_numbers_are_read(tmp_path):
    (tmp_path/"a.yaml").write_text("seed: 0\nepochs: 1_000\nkl_weight: 0.5\nlearning_rate: 1e-05\nprompts: '007'")
    found = Config.load(tmp_path/"a.yaml")
    assert (found.seed, found.epochs, found.kl_weight, found.learning_rate, found.prompts) == (0, 1000, 0.5, 1e-5, "007")

@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "{}"])
def test_an_empty_file_is_the_defaults(text, tmp_path):
    (tmp_path/"a.yaml").write_text(text)
    assert Config.load(tmp_path/"a.yaml") == Config()

# What the environment asks accelerate for

@pytest.mark.parametrize("name, value, dtype, said", [
    ("MIXED_PRECISION", "bf16", "float32", "ACCELERATE_MIXED_PRECISION is bf16, and a run computes "
     "in its dtype, float32: set it to no, and choose by dtype"),
    ("MIXED_PRECISION", "fp16", "bfloat16", "fp16, and a run computes in its dtype, bfloat16"),
    ("MIXED_PRECISION", "FP8", "float16", "fp8"),
    ("DYNAMO_BACKEND", "INDUCTOR", "float32", "ACCELERATE_DYNAMO_BACKEND INDUCTOR is not supported"),
    ("GRADIENT_ACCUMULATION_STEPS", "4", "float32", "4 is not supported, only 1"),
    ("MIXED_PRECISION", "bf16", "bfloat16", None), ("MIXED_PRECISION", "no", "bfloat16", None),
    ("DYNAMO_BACKEND", "NO", "float32", None), ("GRADIENT_ACCUMULATION_STEPS", "1", "float32", None)])
def test_the_environment_does_not_contradict_the_run(name, value, dtype, said, monkeypatch, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    config = Config(dtype=dtype, output_dir=str(tmp_path/"run"))
    if said is None: return check_launcher(config)
    for check in (check_launcher, make_accelerator):
        with pytest.raises(ValueError) as caught: check(config)
        assert said in str(caught.value)

# Errors of libraries

def read_safetensors(file): safetensors.torch.load_file(file)
def ask(file): httpx.get("http://127.0.0.1:9/", trust_env=False)
def unknown_scheme(file): httpx.get("nothing://")
def read_tokenizer(file): tokenizers.Tokenizer.from_file(str(file))
def read_zip(file): zipfile.ZipFile(file)
def read_pickle(file): pickle.loads(b"garbage")
def read_state(file): torch.load(file, weights_only=True)
def read_empty_state(file): torch.load(io.BytesIO(b""), weights_only=True)
def read_image(file): Image.open(file)
def read_parquet(file): pyarrow.parquet.read_table(file)
def read_yaml(file): yaml.safe_load("[")
def read_database(file): sqlite3.connect(file).execute("select * from x")
def decode(file): file.read_text("utf-8")
def raised(error): return lambda file: (_ for _ in ()).throw(error)

LIBRARIES = {function.__name__: function for function in (
    read_safetensors, ask, unknown_scheme, read_tokenizer, read_zip, read_pickle, read_state,
    read_empty_state, read_image, read_parquet, read_yaml, read_database, decode)}
LIBRARIES |= {type(error).__name__ + str(i): raised(error) for i, error in enumerate((
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nTry this"),
    torch.AcceleratorError("CUDA error: no kernel image is available\nfor execution"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory"), MemoryError(), TimeoutError(), EOFError("at the end"),
    RuntimeError("Found no NVIDIA driver on your system."), EntryNotFoundError("404 no such file"),
    HFValidationError("Repo id must use alphanumeric chars"), httpx.ReadTimeout(""),
    torch.distributed.DistBackendError("NCCL error\nunhandled system error")))}

@pytest.mark.parametrize("fail", LIBRARIES.values(), ids=LIBRARIES)
def test_an_error_of_a_library_is_one_line(fail, tmp_path, capsys):
    file = tmp_path/"garbage.bin"
    file.write_bytes(b"\x80\x04\xffnothing that anybody wrote, long enough for a header" + b"\xff"*64)
    assert run_command("prdp_train", lambda: fail(file)) == 1
    said = capsys.readouterr().err
    assert said.startswith("prdp_train: error: ") and said.count("\n") == 1
    assert len(said) > len("prdp_train: error: x")

@pytest.mark.parametrize("bug", [
    TypeError("a bug"), AttributeError("a bug"), KeyError("a bug"), IndexError("a bug"),
    NameError("a bug"), UnboundLocalError("a bug"), AssertionError("a bug"), ZeroDivisionError("a bug"),
    RuntimeError("a bug"), NotImplementedError("a bug"), RecursionError("a bug"),
    RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu!"),
    RuntimeError("element 0 of tensors does not require grad")], ids=repr)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)) as caught: run_command("prdp_train", lambda: raised(bug)(None))
    assert caught.value is bug

def test_our_own_messages_are_as_they_were(capsys):
    for error in (ValueError("epochs must be 1"), RewardError("reward x"), OSError("no room")):
        assert run_command("prdp_train", lambda: raised(error)(None)) == 1
        assert capsys.readouterr().err == f"prdp_train: error: {error}\n"

def test_a_terminal_without_a_sign_shows_its_code(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert run_command("prdp_sample", lambda: print("runs/狐")) == 0
    terminal.flush()
    assert terminal.buffer.getvalue().split() == [rb"runs/\u72d0"]

DAMAGED = ["config.yaml", "final/pytorch_lora_weights.safetensors", "own.parquet"]

@pytest.mark.parametrize("content", [b"", b"\x00"*100, b"\xff\xfe\xff", b"{", b"version https://git-lfs"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_ends_a_command_in_one_line(name, content, own_run, tmp_path, capsys):
    run = tmp_path/"run"
    shutil.copytree(own_run/"run", run)
    (run/name).write_bytes(content)
    command, arguments = sample_command, [str(run), "a fox", "--output", str(tmp_path/"a.png")]
    if name.endswith("parquet"):
        command = train_command
        arguments = flags(**TINY | dict(prompts=run/name, output_dir=tmp_path/"new"))
    capsys.readouterr()
    if (name, content) == ("config.yaml", b""): return # all the defaults: another model, as it says
    assert command(arguments) == 1
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in said

@pytest.mark.parametrize("metadata", [None, {}, {"origin": "{"}, {"origin": "[]"}, {"format": "pt"}])
def test_a_file_of_another_program_is_no_cache(metadata, tmp_path):
    path = tmp_path/"before.safetensors"
    safetensors.torch.save_file({"images": torch.zeros(1)}, path, metadata)
    assert load_evaluation(path, dict(scorers=["x"], prompts=["a fox"])) is None

# Runs of another folder

def test_a_run_is_known_from_another_folder(tmp_path, monkeypatch):
    (tmp_path/"first").mkdir()
    (tmp_path/"second/deep").mkdir(parents=True)
    (tmp_path/"first/two.txt").write_text("\n".join(SENTENCES))
    fields = TINY | dict(eval_rewards=(), epochs=2)
    config = Config(**fields, prompts="two.txt", eval_prompts="two.txt", output_dir="run")
    monkeypatch.chdir(tmp_path/"first")
    [run] = train_runs({"prdp": [config]}, "results")["prdp"]
    monkeypatch.chdir(tmp_path/"second/deep")
    there = tmp_path/"first"
    moved = replace(config, prompts=str(there/"two.txt"), eval_prompts="../../first/two.txt",
                    output_dir=str(there/"run"), device=None)
    assert train_runs({"prdp": [moved]}, there/"results") == {"prdp": [there/"run"]}
    (there/"run/evaluation.csv").unlink() # as if it had been interrupted
    assert train_runs({"prdp": [moved]}, there/"results") == {"prdp": [there/"run"]}
    assert (there/"run/evaluation.csv").exists() and len(read_metrics(there/"run")) == 2
    for other in (dict(seed=1), dict(prompts=str(tmp_path/"second/two.txt")), dict(kl_weight=1.0),
                  dict(eval_prompts=None), dict(model="someone/sd")):
        with pytest.raises(ValueError, match="holds a run of other settings"):
            train_runs({"prdp": [replace(moved, **other)]}, there/"results")

def test_other_prompts_under_the_same_name_are_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"elsewhere").mkdir()
    for place, text in (("two.txt", "a fox"), ("elsewhere/two.txt", "a cow")): (tmp_path/place).write_text(text)
    assert not same_place("two.txt", str(tmp_path/"elsewhere/two.txt"))
    (tmp_path/"elsewhere/two.txt").write_text("a fox")
    assert same_place("two.txt", str(tmp_path/"elsewhere/two.txt"))

@pytest.mark.parametrize("one, other, same", [
    ("two.txt", "/a/two.txt", True), ("../two.txt", "data/two.txt", True), ("a/b", "/x/a/b", True),
    ("a/two.txt", "b/two.txt", False), ("/a/two.txt", "/b/two.txt", False), ("a/b", "/x/b", False),
    ("two.txt", "wo.txt", False), ("emoji", "emoji", True), ("emoji", "emoji_train", False),
    (None, None, True), (None, "two.txt", False), ("./a/b", "a/b", True)])
def test_what_is_the_same_place(one, other, same):
    assert same_place(one, other) is same and same_place(other, one) is same

def test_what_a_file_of_before_spells_out_is_no_other_setting():
    before = Config(eval_rewards=EMOJI_SCORERS, device="cuda:1", log_with="wandb", output_dir="a")
    assert same_settings(before, Config()) and same_settings(Config(), before)
    assert not same_settings(before, Config(eval_rewards=()))
    assert not same_settings(before, Config(eval_images_per_prompt=2))
