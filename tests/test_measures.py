"Rooms one can live in: the measures that every module and notebook is held to."
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import measures


def test_every_room_keeps_its_measures():
    done = subprocess.run([sys.executable, ROOT/"tools/measures.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("found, said", [
    (dict(cells=61), "cells 61 > 60"), (dict(columns=101), "columns 101 > 100"), (dict(exported=41), "exported 41 > 40"),
    (dict(sentence=41), "sentence 41 > 40"), (dict(median=12.5), "median 12.5 > 12"), (dict(lines=401), "lines 401 > 400")])
def test_what_is_over_a_measure_is_named(found, said):
    assert measures.too_much(found) == [said]
    assert not measures.too_much({name: int(value) - 1 for name, value in found.items()})


def test_every_room_is_measured():
    notebooks, modules = measures.rooms()
    assert {"00_derivation", "24_training", "92_emoji_scorers", "index"} <= {notebook.stem for notebook in notebooks}
    assert {module.stem for module in modules} >= {"schedules", "training", "experiments"}


@pytest.mark.parametrize("text, lengths", [
    ("One two three. Four five? Six!", [3, 2, 1]),
    ('He said "one two." Three four.', [4, 2]),
    ("As eq. 6 and eqs. 7-8 say, e.g. here, table 5 of Deng et al. has v1.4 and 0.5.", [19]),
    ("A formula $a + b = c. D$ is one word, so is `a. b c`.", [9]),
    ("Before\n\n$$x = y. z$$\n\nafter it", [1, 2]),
    ("- one two\n- three four five\n1. six\n\n> seven eight", [2, 3, 1, 2]),
    ("| one two | three. four |\n|---|---|\n| five | |", [2, 1, 1, 1]),
    ("See [01 schedules](01_schedules.ipynb) and <b>this</b> line\nand the next", [9]),
    ("```python\none. two three four\n```\nfive", [1]), ("    indented code. more\nsix seven", [2])])
def test_words_of_a_sentence_are_counted(text, lengths):
    assert [len(sentence.split()) for sentence in measures.sentences(text)] == lengths


def test_the_longest_sentence_of_a_notebook_is_found(tmp_path):
    cells = [dict(cell_type="markdown", source=["# Title\n", "\n", "One two. Three four five six. Seven.\n"]),
             dict(cell_type="code", source=["# a comment of a good many words is no prose"])]
    (tmp_path/"some.ipynb").write_text(json.dumps(dict(cells=cells)), encoding="utf-8")
    found = measures.measure_notebook(tmp_path/"some.ipynb")
    assert (found["sentence"], found["longest"]) == (4, "Three four five six")
