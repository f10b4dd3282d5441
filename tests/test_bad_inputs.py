"Bad rewards and prompts: whatever is given, one error says what it was, what was expected and what to do."
import json, sys
import pytest
from PIL import Image
from prdp_nb.prompts import PROMPT_SETS, READERS, draw_prompts, load_prompts
from prdp_nb.rewards import REWARDS, RewardError, as_reward, compute_rewards, parse_reward

def message(function, *args, error=ValueError, **kwargs) -> str: # of the error that a call must raise, which must be one line
    with pytest.raises(error) as caught: function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)

def misspellings(name: str): return (name[:-1], name[1:], name.upper(), name.replace("_", "-") + "s")

# Names

@pytest.mark.parametrize("kind, table, look_up", [("reward", REWARDS, parse_reward), ("prompt set", PROMPT_SETS, load_prompts)], ids=["rewards", "prompts"])
def test_every_name_is_suggested_for_its_misspellings(kind, table, look_up):
    for name in table:
        for wrong in {*misspellings(name)} - {*table}:
            said = message(look_up, wrong)
            assert said.startswith(f"unknown {kind} {wrong!r}; the nearest is {name!r}, known are: ")
            assert all(known in said for known in table)

@pytest.mark.parametrize("text, expected", [
    ("emoji_score + emoji_scor", "unknown reward 'emoji_scor'; the nearest is 'emoji_score'"),
    ("emoji_score +", "unknown reward ''"),
    ("emoji_score*2", "unknown reward '2'"),
    ("1,5*emoji_score", "cannot read the weight '1,5' in the reward '1,5*emoji_score'"),
    ("2*3*emoji_score", "cannot read the weight '2*3'")])
def test_reward_text(text, expected): assert expected in message(parse_reward, text)

@pytest.mark.parametrize("wrong", [None, 1.0, [], {"emoji_score": 1}, ("emoji_score", "colourfulness")], ids=str)
def test_what_is_no_reward(wrong): assert message(as_reward, wrong, error=TypeError).startswith(f"{wrong!r} is not a reward: give a name, or a callable")

# Rewards

PICTURES, SENTENCES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")], ["a fox", "a duck", "a bee"]

def fails(): raise TimeoutError("no answer within 30 s")

ANSWERS = {
    "too few": (lambda: [1, 2], "reward own returned 2 scores for 3 images; return one score per image"),
    "too many": (lambda: [1, 2, 3, 4], "reward own returned 4 scores for 3 images"),
    "none at all": (lambda: [], "reward own returned 0 scores for 3 images"),
    "a mean": (lambda: 2.0, "reward own returned 2.0, which is not a list of numbers"),
    "a pair, as in trl": (lambda: ([1, 2, 3], {}), "reward own returned ([1, 2, 3], {}), which is not a list of numbers"),
    "a hole": (lambda: [1, None, 3], "reward own returned [1, None, 3], which is not a list of numbers"),
    "nan": (lambda: [1, 2, float("nan")], "reward own gave nan to image 2 (prompt 'a bee'); a score must be a finite number"),
    "minus infinity": (lambda: [1, float("-inf"), 3], "reward own gave -inf to image 1 (prompt 'a duck')"),
    "error": (fails, "reward own raised TimeoutError: no answer within 30 s; it was asked about 3 images, image 0 of prompt 'a fox'"),
    "error without words": (lambda: [][0], "reward own raised IndexError"),
    "error in a lazy answer": (lambda: (1/(1 - i) for i in range(3)), "division by zero); return one score per image")}

@pytest.mark.parametrize("answer, expected", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("in_a_sum", [False, True], ids=["alone", "in a sum"])
def test_answer_of_a_reward(answer, expected, in_a_sum):
    def own(images, prompts): return answer()
    reward = 2*as_reward(own) + as_reward("colourfulness") if in_a_sum else own
    said = message(compute_rewards, reward, PICTURES, SENTENCES, error=RewardError)
    assert said.startswith("reward own ") and expected in said

def test_the_reward_s_own_error_is_kept_as_the_cause():
    def own(images, prompts): fails()
    with pytest.raises(RewardError) as caught: compute_rewards(own, PICTURES, SENTENCES)
    assert isinstance(caught.value.__cause__, TimeoutError)

def test_an_interrupt_is_no_fault_of_the_reward():
    def own(images, prompts): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): compute_rewards(own, PICTURES, SENTENCES)

def test_no_pictures(): assert "0 images and 0 prompts" in message(compute_rewards, "colourfulness", [], [])

# Prompt files

CONTENTS = { # name of the file -> what is in it, what the error says
    "list.json": ("[]", "it is empty"),
    "number.json": ("3", "it holds int, expected one list of strings or one list of objects"),
    "nested.json": ('[["a fox"]]', "it holds list, expected one list"),
    "mixed.jsonl": ('"a fox"\n{"prompt": "a duck"}\n', "it holds dict and str, expected one list"),
    "null.jsonl": ('{"prompt": "a fox"}\n{"prompt": null}\n', "entry 1 is None, not text"),
    "header.csv": ("prompt\n", "it is empty"),
    "blank.csv": ('id,prompt\n1,\n2," "\n', "it is empty"),
    "other.csv": ("id,caption\n1,a fox\n", "it has no column 'prompt'; name one of its columns: id, caption"),
    "torn.csv": ('prompt\n"a fox\n', "cannot read prompts from"),
    "byte.json": (b'["a f\xff"]', "can't decode byte 0xff"),
    "text.parquet": ("a fox\n", "cannot read prompts from"),
    "prompts": ("a fox\n", "is of unknown format ''; known are: .txt, .json, .jsonl, .csv, .parquet"),
    "prompts.tsv": ("a fox\n", "is of unknown format '.tsv'; known are: .txt, .json, .jsonl, .csv, .parquet")}

@pytest.mark.parametrize("name", CONTENTS)
def test_content_of_a_prompt_file(name, tmp_path):
    text, expected = CONTENTS[name]
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    said = message(load_prompts, tmp_path/name)
    assert expected in said and str(tmp_path/name) in said

@pytest.mark.parametrize("name", [*(f"prompts{suffix}" for suffix in READERS), "prompts.tsv", "data/prompts"])
def test_a_missing_file_is_named_in_full(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = message(load_prompts, name, error=FileNotFoundError)
    assert str(tmp_path/name) in said and "emoji_animals" in said

def test_a_parquet_file_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path/"prompts.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "prompts.parquet needs pyarrow: pip install pyarrow" in message(load_prompts, tmp_path/"prompts.parquet", error=ImportError)

def test_upper_case_and_other_columns_are_no_fault(tmp_path):
    (tmp_path/"PROMPTS.JSON").write_text(json.dumps([dict(caption="a fox", prompt="no"), dict(caption="a duck", prompt="no")]))
    assert load_prompts(tmp_path/"PROMPTS.JSON", column="caption") == ["a fox", "a duck"]

@pytest.mark.parametrize("number", [-1, 0, 4])
def test_draws_that_cannot_be_made(number): assert f"cannot draw {number} distinct prompts from a set of 3: ask for 1 to 3" in message(draw_prompts, SENTENCES, number, 0, 0)
