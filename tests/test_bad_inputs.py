"""What people get wrong: whatever is given, one line says what it was, what was expected and what
to do, before anything is sampled or written."""
import json, shlex, shutil, sys
from decimal import Decimal
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from prdp_nb.commands import evaluate_command
from prdp_nb.finetuning import LORA_FILE
from prdp_nb.algorithm import draw_prompts
from prdp_nb.prompts import PROMPT_SETS, READERS, load_prompts
from prdp_nb.rewards import REWARDS, RewardError, as_reward, compute_rewards, parse_reward
from prdp_nb.commands import sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.runs import CHECKSUMS, seal
from prdp_nb.training import Trainer

def message(function, *args, error=ValueError, **kwargs) -> str:
    "The text of the error that a call must raise. It must be one line."
    with pytest.raises(error) as caught: function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)

def misspellings(name: str) -> tuple:
    return name[:-1], name[1:], name.upper(), name.replace("_", "-") + "s"

# Names

NAMES = {"rewards": ("reward", REWARDS, parse_reward),
         "prompts": ("prompt set", PROMPT_SETS, load_prompts)}

@pytest.mark.parametrize("kind, table, look_up", NAMES.values(), ids=NAMES)
def test_every_name_is_suggested_for_its_misspellings(kind, table, look_up):
    for name in table:
        for wrong in {*misspellings(name)} - {*table}:
            said = message(look_up, wrong)
            expected = f"unknown {kind} {wrong!r}; the nearest is {name!r}, known are: "
            assert said.startswith(expected)
            assert all(known in said for known in table)

@pytest.mark.parametrize("text, expected", [
    ("emoji_score + emoji_scor", "unknown reward 'emoji_scor'; the nearest is 'emoji_score'"),
    ("emoji_score +", "unknown reward ''"),
    ("emoji_score*2", "unknown reward '2'"),
    ("emoji_score, colourfulness", "unknown reward 'emoji_score, colourfulness'; the nearest is"),
    ("emoji_score - colourfulness", "unknown reward 'emoji_score - colourfulness'"),
    ("2 emoji_score", "unknown reward '2 emoji_score'; the nearest is 'emoji_score'"),
    ("", "unknown reward ''"),
    ("1,5*emoji_score", "cannot read the weight '1,5' in the reward '1,5*emoji_score'"),
    ("2*3*emoji_score", "cannot read the weight '2*3'")])
def test_reward_text(text, expected): assert expected in message(parse_reward, text)

NO_REWARDS = [None, 1.0, [], {"emoji_score": 1}, ("emoji_score", "colourfulness")]

@pytest.mark.parametrize("wrong", NO_REWARDS, ids=str)
def test_what_is_no_reward(wrong):
    said = message(as_reward, wrong, error=TypeError)
    assert said.startswith(f"{wrong!r} is not a reward: give a name, or a callable")

# Rewards

IMAGES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
SENTENCES = ["a fox", "a duck", "a bee"]

def fails(): raise TimeoutError("no answer within 30 s")

ANSWERS = {
    "too few": (lambda: [1, 2],
        "reward own returned 2 scores for 3 images; return one score per image"),
    "too many": (lambda: [1, 2, 3, 4], "reward own returned 4 scores for 3 images"),
    "none at all": (lambda: [], "reward own returned 0 scores for 3 images"),
    "a mean": (lambda: 2.0, "reward own returned 2.0, which is not a list of numbers"),
    "a pair, as in trl": (lambda: ([1, 2, 3], {}),
        "reward own returned ([1, 2, 3], {}), which is not a list of numbers"),
    "nothing": (lambda: None, "reward own returned None, which is not a list of numbers"),
    "words": (lambda: ["good", "bad", "ugly"],
        "reward own returned ['good', 'bad', 'ugly'], which is not a list of numbers (could not "
        "convert string to float: 'good')"),
    "text that has as many letters": (lambda: "123",
        "reward own returned '123', which is not a list of numbers (it has no entry for each "
        "image, in their order); return one"),
    "a score by name": (lambda: {0: 0.1, 1: 0.2, 2: 0.3},
        "reward own returned {0: 0.1, 1: 0.2, 2: 0.3}, which is not a list of numbers (it has no "
        "entry for each image"),
    "a set": (lambda: {1.0, 2.0, 3.0}, "(it has no entry for each image, in their order)"),
    "two scores an image": (lambda: np.zeros((3, 2)),
        "which is not a list of numbers (can only convert an array of size 1 to a Python scalar)"),
    "tensors with several numbers": (lambda: [torch.zeros(4)]*3,
        "which is not a list of numbers (a Tensor with 4 elements cannot be converted to Scalar)"),
    "one row of all scores": (lambda: torch.zeros(1, 3),
        "which is not a list of numbers (a Tensor with 3 elements cannot be converted to Scalar)"),
    "a score too large": (lambda: [1, 1e39, 3], "reward own gave inf to image 1 (prompt 'a duck')"),
    "a hole": (lambda: [1, None, 3],
        "reward own returned [1, None, 3], which is not a list of numbers"),
    "nan": (lambda: [1, 2, float("nan")],
        "reward own gave nan to image 2 (prompt 'a bee'); a score must be a finite number"),
    "minus infinity": (lambda: [1, float("-inf"), 3],
        "reward own gave -inf to image 1 (prompt 'a duck')"),
    "error": (fails,
        "reward own raised TimeoutError: no answer within 30 s; it was asked about 3 images, "
        "image 0 of prompt 'a fox'"),
    "error without words": (lambda: [][0], "reward own raised IndexError"),
    "error in a lazy answer": (lambda: (1/(1 - i) for i in range(3)),
        "division by zero); return one score per image")}

@pytest.mark.parametrize("answer, expected", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("in_a_sum", [False, True], ids=["alone", "in a sum"])
def test_answer_of_a_reward(answer, expected, in_a_sum):
    def own(images, prompts): return answer()
    reward = 2*as_reward(own) + as_reward("colourfulness") if in_a_sum else own
    said = message(compute_rewards, reward, IMAGES, SENTENCES, error=RewardError)
    assert said.startswith("reward own ") and expected in said

NUMBERS = [np.array([[1], [2], [3]]), torch.tensor([[1.], [2.], [3.]], requires_grad=True),
           [torch.tensor(i) for i in (1, 2, 3)], (1, np.float32(2), True + 2), range(1, 4)]

@pytest.mark.parametrize("answer", NUMBERS, ids=lambda answer: type(answer).__name__)
def test_every_way_to_write_a_number_for_each_image_will_do(answer):
    assert compute_rewards(lambda images, prompts: answer, IMAGES, SENTENCES).tolist() == [1, 2, 3]

def test_a_reward_that_takes_no_prompts():
    def own(images): return [1.0]*len(images)
    said = message(compute_rewards, own, IMAGES, SENTENCES, error=RewardError)
    assert "reward own raised TypeError: " in said
    assert "takes 1 positional argument but 2 were given" in said

def test_the_reward_s_own_error_is_kept_as_the_cause():
    def own(images, prompts): fails()
    with pytest.raises(RewardError) as caught: compute_rewards(own, IMAGES, SENTENCES)
    assert isinstance(caught.value.__cause__, TimeoutError)

def test_an_interrupt_is_no_fault_of_the_reward():
    def own(images, prompts): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compute_rewards(own, IMAGES, SENTENCES)

def test_no_images():
    assert "0 images and 0 prompts" in message(compute_rewards, "colourfulness", [], [])

# Prompt files

CONTENTS = { # name of the file -> what is in it, what the error says
    "list.json": ("[]", "it is empty"),
    "number.json": ("3", "it holds int, expected one list of strings or one list of objects"),
    "nested.json": ('[["a fox"]]', "it holds list, expected one list"),
    "mixed.jsonl": ('"a fox"\n{"prompt": "a duck"}\n', "it holds dict and str, expected one list"),
    "null.jsonl": ('{"prompt": "a fox"}\n{"prompt": null}\n', "entry 1 is None, not text"),
    "header.csv": ("prompt\n", "it is empty"),
    "blank.csv": ('id,prompt\n1,\n2," "\n', "it is empty"),
    "other.csv": ("id,caption\n1,a fox\n",
        "it has no column 'prompt'; name one of its columns: id, caption"),
    "torn.csv": ('prompt\n"a fox\n', "cannot read prompts from"),
    "byte.json": (b'["a f\xff"]', "can't decode byte 0xff"),
    "text.parquet": ("a fox\n", "cannot read prompts from"),
    "comment.txt": ("# my animals\na fox\n",
        "line 1 is a comment, '# my animals': every line of it is a prompt; leave it out, or put "
        "a prompt that begins like that into a .json file"),
    "utf16.txt": ("a fox".encode("utf-16"),
        "can't decode byte 0xff in position 0: invalid start byte; save it as UTF-8"),
    "blank.txt": ("\n  \n", "it is empty: there is no prompt in it"),
    "prompts": ("a fox\n",
        "is of unknown format ''; known are: .txt, .json, .jsonl, .csv, .parquet"),
    "prompts.tsv": ("a fox\n",
        "is of unknown format '.tsv'; known are: .txt, .json, .jsonl, .csv, .parquet")}

@pytest.mark.parametrize("name", CONTENTS)
def test_content_of_a_prompt_file(name, tmp_path):
    text, expected = CONTENTS[name]
    (tmp_path/name).write_bytes(as_bytes(text))
    said = message(load_prompts, tmp_path/name)
    assert expected in said and str(tmp_path/name) in said

MISSING = [*(f"prompts{suffix}" for suffix in READERS), "prompts.tsv", "data/prompts"]

@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_is_named_in_full(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = message(load_prompts, name, error=FileNotFoundError)
    assert str(tmp_path/name) in said and "emoji_animals" in said

def test_a_parquet_file_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path/"prompts.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    said = message(load_prompts, tmp_path/"prompts.parquet", error=ImportError)
    assert "prompts.parquet needs pyarrow: pip install pyarrow" in said

def test_upper_case_and_other_columns_are_no_fault(tmp_path):
    rows = [dict(caption="a fox", prompt="no"), dict(caption="a duck", prompt="no")]
    (tmp_path/"PROMPTS.JSON").write_text(json.dumps(rows))
    assert load_prompts(tmp_path/"PROMPTS.JSON", column="caption") == ["a fox", "a duck"]
    (tmp_path/"tags.txt").write_text("#catsofinstagram\na fox # 1\n")
    assert load_prompts(tmp_path/"tags.txt") == ["#catsofinstagram", "a fox # 1"]

@pytest.mark.parametrize("number", [-1, 0, 4])
def test_draws_that_cannot_be_made(number):
    said = message(draw_prompts, SENTENCES, number, 0, 0)
    assert f"cannot draw {number} distinct prompts from a set of 3: ask for 1 to 3" in said

# Command lines: a finished run lies in {here}/run, copies of it with one thing wrong beside it

FILES = { # name -> content
    "two.txt": "a painting of a fox\na painting of a duck\n", "odd.txt": "a spaceship\na castle\n",
    "empty.txt": "", "table.csv": "text,number\na fox,1\n",
    "results.csv": "prompt,score\na fox,1\n",
    "tab.yaml": "epochs:\t3\n\tseed: 1", "list.yaml": "- epochs\n- 3\n",
    "field.yaml": "guidence_scale: 3\n", "nan.yaml": "kl_weight: .nan\n",
    "inf.yaml": "learning_rate: .inf\n", "epochs.yaml": "epochs: .inf\n", "none.yaml": "epochs:\n",
    "fraction.yaml": "epochs: 2.5\n", "scorers.yaml": "eval_rewards: 3\n",
    "reward.yaml": "reward: 5\n",
    "code.yaml": "reward: !!python/object/apply:os.getcwd []\n", "bytes.yaml": b"\xff\xfee\x00"}

def rewrite(path, change):
    save_file({name: change(value) for name, value in load_file(path).items()}, path)

def as_bytes(content): return content if isinstance(content, bytes) else content.encode()

def shorten(path): path.write_bytes(path.read_bytes()[:-50])

def edit(path, old, new): path.write_text(path.read_text().replace(old, new))
def twice(value, side): return torch.cat([value]*2, side)
def rank_16(run): # with a new seal, as if it had always been so
    checkpoint = run/"checkpoints/epoch_0001"
    rewrite(checkpoint/LORA_FILE, lambda value: twice(value, 0 if value.shape[0] == 8 else 1))
    (checkpoint/CHECKSUMS).unlink()
    seal(checkpoint)

STATE = "checkpoints/epoch_0001/training_state.pt"

def forget_models(run):
    shutil.rmtree(run/"final")
    shutil.rmtree(run/"checkpoints")

def rename_reward(run):
    for name in ("config.yaml", "checkpoints/config.yaml"):
        edit(run/name, "reward: colourfulness", "reward: object my_reward")

RUNS = { # name -> what is wrong with it
    "no_final": lambda run: shutil.rmtree(run/"final"),
    "empty_final": lambda run: (run/"final"/LORA_FILE).unlink(),
    "torn_final": lambda run: shorten(run/"final"/LORA_FILE),
    "other_final": lambda run: rewrite(run/"final"/LORA_FILE, lambda value: twice(value, 1)),
    "no_checkpoints": lambda run: shutil.rmtree(run/"checkpoints"),
    "no_model": forget_models,
    "torn_checkpoint": lambda run: (run/STATE).write_bytes(b"PK"),
    "lost_metrics": lambda run: (run/"checkpoints/epoch_0001/metrics.csv").unlink(),
    "no_checksums": lambda run: (run/"checkpoints/epoch_0001"/CHECKSUMS).unlink(),
    "other_rank": rank_16,
    "emptied_config": lambda run: (run/"config.yaml").write_text(""),
    "edited_config": lambda run: edit(run/"config.yaml", "seed: 0", "seed: 5"),
    "own_reward": rename_reward}

@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items(): (folder/name).write_bytes(as_bytes(content))
    Trainer(Config(
        epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
        eval_images_per_prompt=1, eval_rewards=(), reward="colourfulness",
        prompts=str(folder/"two.txt"), output_dir=str(folder/"run"))).train()
    for name, spoil in RUNS.items():
        shutil.copytree(folder/"run", folder/name)
        spoil(folder/name)
    return folder

COMMANDS = dict(train=train_command, sample=sample_command, evaluate=evaluate_command)
LINES = [ # what is typed after prdp_, what the error must say
    # fields of a configuration
    ("train --epochs 0", "epochs must be at least 1, not 0"),
    ("train --epochs 1e3", "epochs must be of type int, not '1e3'"),
    ("train --seed -1", "seed must be at least 0, not -1"),
    ("train --seed 4294967296", "seed must be below 4294967296"),
    ("train --guidance_scale 0.5", "guidance_scale must be at least 1, not 0.5"),
    ("train --learning_rate 0", "learning_rate must be above 0, not 0.0"),
    ("train --kl_weight inf", "kl_weight must be below inf, not inf"),
    ("train --cell_fraction 1.5", "cell_fraction must be at most 1, not 1.5"),
    ("train --images_per_prompt 1",
     "images_per_prompt must be at least 2, not 1: objective 'prdp' compares images of one "
     "prompt; one is enough for ddpo"),
    ("train --online maybe", "online must be true or false, not 'maybe'"),
    ("train --dtype float8",
     "unknown dtype 'float8'; the nearest is 'float32', known are: float32, bfloat16, float16"),
    ("train --objective ppo", "unknown objective 'ppo'; the nearest is"),
    ("train --preset emoji-small",
     "unknown preset 'emoji-small'; the nearest is 'emoji_small', known are: emoji_small, "),
    ("train --preset paper_small_hpsv2 --reward colourful",
     "unknown reward 'colourful'; the nearest is 'colourfulness'"),
    ("train --num_inference_steps 1001", "1001"),
    ("train --device gpu", "device 'gpu' cannot be used here"),
    ("train --log_with tensorbord", "unknown log_with 'tensorbord'; the nearest is 'tensorboard'"),
    # YAML files
    ("train --config {here}/nowhere.yaml",
     "no configuration file at {here}/nowhere.yaml: check the path; a preset is named as one "
     "(--preset emoji_small, "),
    ("train --config emoji_small", "a preset is named as one (--preset emoji_small, "),
    ("train --config {here}/tab.yaml",
     "tab.yaml is not YAML in UTF-8: while scanning for the next token found character '\\t'"),
    ("train --config {here}/bytes.yaml",
     "bytes.yaml is not YAML in UTF-8: 'utf-8' codec can't decode byte 0xff"),
    ("train --config {here}/code.yaml",
     "code.yaml is not YAML in UTF-8: could not determine a constructor for the tag "
     "'tag:yaml.org,2002:python/object/apply:os.getcwd'"),
    ("train --config {here}/list.yaml",
     "list.yaml holds ['epochs', 3], expected lines of the form `field: value`"),
    ("train --config {here}/field.yaml",
     "unknown field of Config 'guidence_scale'; the nearest is 'guidance_scale'"),
    ("train --config {here}/nan.yaml", "kl_weight must be above 0, not nan"),
    ("train --config {here}/inf.yaml", "learning_rate must be below inf, not inf"),
    ("train --config {here}/epochs.yaml", "epochs must be of type int, not inf"),
    ("train --config {here}/none.yaml", "epochs must be of type int, not None"),
    ("train --config {here}/fraction.yaml", "epochs must be of type int, not 2.5"),
    ("train --config {here}/scorers.yaml", "eval_rewards must be a list of names, not 3"),
    ("train --config {here}/reward.yaml", "reward must be of type str, not 5"),
    # prompts
    ("train --prompts 'a painting of a fox'",
     "unknown prompt set 'a painting of a fox'; the nearest is"),
    ("train --prompts {here}",
     "no prompt file at {here}: check the path, or give a prompt set by name (animals, "),
    ("train --prompts {here}/empty.txt", "cannot read prompts from {here}/empty.txt: it is empty"),
    ("train --prompts {here}/table.csv",
     "it has no column 'prompt'; name one of its columns: text, number"),
    ("train --prompts {here}/table.csv --prompt_column number",
     "cannot draw 8 distinct prompts from a set of 1: ask for 1 to 1, or give more prompts"),
    ("train --prompts {here}/two.txt", "cannot draw 8 distinct prompts from a set of 2"),
    ("train --eval_prompts {here}/nowhere.txt", "no prompt file at {here}/nowhere.txt"),
    # rewards
    ("train --reward 2xcolourfulness",
     "unknown reward '2xcolourfulness'; the nearest is 'colourfulness'"),
    ("train --reward 0,5*colourfulness",
     "cannot read the weight '0,5' in the reward '0,5*colourfulness'; write it as in"),
    ("train --reward nan*colourfulness",
     "the weight of Colourfulness must be a finite number, not nan"),
    ("train --reward my_module:my_reward",
     "'my_module:my_reward' is neither the name of a reward nor the URL of a scoring service"),
    ("train --eval_rewards diversity", "unknown reward 'diversity'"),
    ("train --prompts_per_epoch 2 --prompts {here}/odd.txt --reward emoji_judge",
     "reward EmojiJudge raised ValueError: 'a spaceship' is not a sentence of the emoji world"),
    # models
    ("train --model emojis", "unknown model 'emojis'; the nearest is 'emoji', known are: emoji"),
    ("train --model {here}/run/final",
     "no pipeline at '{here}/run/final': neither a folder here with a model_index.json nor a "
     "repository"),
    # folders
    ("train --output_dir {here}",
     "output_dir '{here}' exists and is not empty; choose another one (--output_dir), or delete "
     "it"),
    ("train --output_dir {here}/run",
     "go on with the run in it (--resume {here}/run), or delete it"),
    ("train --output_dir {here}/two.txt/run",
     "output_dir '{here}/two.txt/run' cannot be made, for '{here}/two.txt' is a file; choose "
     "another one"),
    # going on with a run
    ("train --resume {here}/nowhere",
     "'{here}/nowhere' is not a run folder that can be resumed: expected config.yaml and "
     "checkpoints/config.yaml in it"),
    ("train --resume {here}/run/config.yaml", "is not a run folder that can be resumed"),
    ("train --resume {here}/no_checkpoints", "is not a run folder that can be resumed"),
    ("train --resume {here}/run --output_dir elsewhere",
     "a run that is resumed stays in its folder: leave out --output_dir"),
    ("train --resume {here}/run --model {here}/other",
     "{here}/other"), # is no model
    ("train --resume {here}/run --reward emoji_score",
     "reward (EmojiScore) is not what the run in '{here}/run' began with"),
    ("train --resume {here}/run --lora_rank 4", "cannot change lora_rank 4 (the run has 8)"),
    ("train --resume {here}/emptied_config",
     "differs from that of the run in '{here}/emptied_config': reward emoji_score (the run has "
     "colourfulness)"),
    ("train --resume {here}/edited_config",
     "differs from that of the run in '{here}/edited_config': seed 5 (the run has 0); to change "
     "it on purpose, name it: --seed 5"),
    ("train --resume {here}/own_reward --epochs 2",
     "the run's reward, 'object my_reward', has no name to load it by; give it again: "
     "Trainer.resume('{here}/own_reward', reward=...)"),
    # evaluation
    ("evaluate {here}", "'{here}' is not a run folder: expected config.yaml and final/ in it"),
    ("evaluate {here}/no_final",
     "unknown checkpoint 'final'; the nearest is 'epoch_0001', known are: epoch_0001"),
    ("evaluate {here}/no_model",
     "'{here}/no_model' holds no model yet: expected final/ or checkpoints/ in it"),
    ("evaluate {here}/empty_final",
     "no finetuned model in '{here}/empty_final/final': expected "
     "pytorch_lora_weights.safetensors or model_index.json"),
    ("evaluate {here}/torn_final",
     "pytorch_lora_weights.safetensors in '{here}/torn_final/final' does not fit the model "
     "'emoji', or is torn (SafetensorError: "),
    ("evaluate {here}/other_final",
     "in '{here}/other_final/final' does not fit the model 'emoji', or is torn (RuntimeError: "
     "Error(s) in loading state_dict"),
    ("evaluate {here}/run --checkpoint epoch_3",
     "unknown checkpoint 'epoch_3'; the nearest is 'epoch_0001', known are: epoch_0001, final"),
    ("evaluate {here}/run --rewards emoji_scores",
     "unknown scorer 'emoji_scores'; the nearest is 'emoji_score'"),
    ("evaluate {here}/own_reward", "the reward 'object my_reward' was handed in by a program"),
    ("evaluate {here}/run --rewards diversity",
     "diversity needs two images of each prompt, and 'a painting of a fox' has one: raise "
     "images_per_prompt"),
    ("evaluate {here}/run --rewards emoji_judge --prompts {here}/odd.txt",
     "'a spaceship' is not a sentence of the emoji world"),
    ("evaluate {here}/run --images_per_prompt 0", "images_per_prompt must be at least 1, not 0"),
    ("evaluate {here}/run --output {here}/nowhere/table.csv",
     "cannot write '{here}/nowhere/table.csv': there is no folder '{here}/nowhere'; make it first"),
    ("evaluate {here}/run --output {here}/table.xlsx",
     "cannot write '{here}/table.xlsx': its name must end in one of .csv"),
    ("evaluate {here}/run --output {here}/results.csv",
     "results.csv' is no table of evaluations: it lacks experiment"),
    ("evaluate {here}/run --plot {here}/plot.txt", "its name must end in one of .pdf, .png, .svg"),
    # sampling
    ("sample {here}/nowhere 'a fox'",
     "'{here}/nowhere' is not a run folder: expected config.yaml and final/ in it"),
    ("sample {here}/no_final 'a fox'", "unknown checkpoint 'final'; the nearest is 'epoch_0001'"),
    ("sample {here}/run 'a fox' --output {here}/nowhere/fox.png",
     "there is no folder '{here}/nowhere'; make it first"),
    ("sample {here}/run 'a fox' --output fox",
     "cannot write 'fox': its name must end in one of .jpeg, .jpg, .png, .webp"),
    ("sample {here}/run 'a fox' --seed -1", "seed must be at least 0, not -1")]

@pytest.mark.parametrize("line, expected", LINES, ids=[line for line, _ in LINES])
def test_command_line(line, expected, here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    for name in ("scoring.sample_epoch", "models.generate", "evaluation.evaluate"):
        monkeypatch.setattr(f"prdp_nb.{name}", lambda *a, **k: pytest.fail("sampled"))
    files = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    command, *arguments = shlex.split(line.format(here=here))
    if command == "train" and not {"--output_dir", "--resume"} & {*arguments}:
        arguments += ["--output_dir", str(here/"new")]
    assert COMMANDS[command](arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"prdp_{command}: error: ") and expected.format(here=here) in said
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == files

DAMAGED = [ # found once the run folder is locked
    ("train --resume {here}/torn_checkpoint --epochs 2",
     "none of the 1 checkpoints in '{here}/torn_checkpoint/checkpoints' is intact: start a new "
     "run in another output_dir"),
    ("train --resume {here}/lost_metrics --epochs 2", "none of the 1 checkpoints in"),
    ("train --resume {here}/no_checksums --epochs 2", "none of the 1 checkpoints in"),
    ("train --resume {here}/other_rank --epochs 2",
     "the weights in '{here}/other_rank/checkpoints/epoch_0001' do not fit the model that is "
     "trained: was it made with another model, adapter or lora_rank?")]

@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged")
@pytest.mark.parametrize("line, expected", DAMAGED, ids=[line for line, _ in DAMAGED])
def test_damaged_checkpoints(line, expected, here, capsys, monkeypatch):
    monkeypatch.setattr("prdp_nb.training.run_epoch", lambda *a: pytest.fail("trained"))
    command, *arguments = shlex.split(line.format(here=here))
    assert COMMANDS[command](arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("prdp_train: error: ") and expected.format(here=here) in said

FLAGS = [
    ("train --lr 3", "unrecognized arguments: --lr 3"),
    ("train --epochs", "argument --epochs: expected one argument"),
    ("train --preset emoji_small --config own.yaml",
     "argument --config: not allowed with argument --preset"),
    ("sample run", "the following arguments are required: PROMPT"),
    ("sample run fox --seed one", "argument --seed: invalid int value: 'one'"),
    ("evaluate", "the following arguments are required: RUN")]

@pytest.mark.parametrize("line, expected", FLAGS)
def test_flags_that_do_not_exist(line, expected, capsys):
    command, *arguments = line.split()
    with pytest.raises(SystemExit) as caught: COMMANDS[command](arguments)
    assert caught.value.code == 2 and expected in capsys.readouterr().err

@pytest.mark.parametrize("value", [2.5, np.float32(2.5), np.float64(2.5), Decimal("2.5"), torch.tensor(2.5), True, np.True_])
def test_a_number_of_another_kind_is_not_rounded(value):
    assert message(Config, epochs=value).startswith("epochs must be ")

@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.float32(3), Decimal(3), torch.tensor(3), "3"])
def test_a_whole_number_of_another_kind_is_taken(value): assert Config(epochs=value).epochs == 3
