"""Rooms 11, 16, 21 and 26: tables and text that are read or written wrong. The content comes back
as it was written, or one line says what is wrong with the file."""
import ast
from pathlib import Path
import numpy as np, pandas as pd, pytest
from prdp_nb.commands import evaluate_command
from prdp_nb.comparison import COLUMNS, gain_matrix, read_table
from prdp_nb.prompts import load_prompts
from prdp_nb.runs import append_rows, read_metrics

ROOT = Path(__file__).resolve().parents[1]

def error_of(function, *args) -> str:
    with pytest.raises(ValueError) as caught: function(*args)
    said = str(caught.value)
    assert len(said.splitlines()) == 1 and said.encode()
    return said

def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path

# Prompts: CSV

REFUSED = { # name -> content, what the error says
    "no header": ("a fox\na duck\n",
        "it has no column 'prompt'; name one of its columns: a fox; if its first row is a prompt "
        "and no header, add a first line above it: prompt"),
    "no header, commas": ("a fox, digital art\na duck, oil\n", "if its first row is a prompt"),
    "unusual name": ("animal\na fox\n", "name one of its columns: animal;"),
    "index, no name": (",0\n0,a fox\n", "name one of its columns: 0;"),
    "commas without quotes": ("prompt\na duck\na fox, digital art\n",
        "row 3 has 2 fields, the header has 1: a prompt with commas must be in quotes, "
        '"a fox, digital art", and no comma may end the line'),
    "commas after an id": ("id,prompt\n1,a fox, digital art\n", "row 2 has 3 fields, the header"),
    "commas before a number": ("prompt,seed\na fox, digital art,1\n", "row 2 has 3 fields"),
    "field missing": ("id,prompt\n1,a fox\n2\n", "row 3 has 1 fields, the header has 2"),
    "comma in rows only": ("prompt\na fox,\na duck,\n", "and no comma may end the line"),
    "after a blank line": ("prompt\n\na fox, art\n", "row 3 has 2 fields"),
    "semicolons": ("id;prompt\n1;a fox\n", "separate columns by commas, not ; or tabs"),
    "tabs": ("id\tprompt\n1\ta fox\n", "separate columns by commas, not ; or tabs"),
    "quote not closed": ('prompt\na duck\n"a fox\na bee\n', "row 3 is torn (unexpected end"),
    "quotes not doubled": ('prompt\n"a "sly" fox"\n', "row 2 is torn"),
    "quoted word first": ('prompt\n"sly" fox\n', "row 2 is torn"),
    "a column without a name": ("prompt,\na fox, digital art\na duck,\n",
        "row 2 has 'digital art' in a column without a name: name the column, or put a prompt"),
    "columns without a name": ("id,prompt,,\n1,a duck,,\n2,a fox, digital art, 8k\n",
        "row 3 has 'digital art8k' in a column without a name"),
    "two columns of one name": ("prompt,prompt\na,b\n", "several columns 'prompt'"),
    "a very long header": ("a fox " * 1000 + "\na duck\n", "no column 'prompt'"),
    "a field too long": ("prompt\n" + "x"*200_000 + "\n", "row 2 is torn (field larger"),
    "utf-16": ("prompt\na fox\n".encode("utf-16"), "save it as UTF-8"),
    "utf-16 without BOM": ("prompt\na fox\n".encode("utf-16-le"),
        "line 1 has NUL characters, as in UTF-16; save it as UTF-8"),
    "utf-16, big end first": ("prompt\na fox\n".encode("utf-16-be"), "save it as UTF-8"),
    "NUL": ("prompt\na\0fox\n", "line 2 has NUL characters")}

@pytest.mark.parametrize("content, expected", REFUSED.values(), ids=REFUSED)
def test_a_csv_file_that_cannot_be_read_as_meant_is_refused(content, expected, tmp_path):
    path = written(tmp_path/"own.csv", content)
    said = error_of(load_prompts, path)
    assert said.startswith(f"cannot read prompts from {path}: ") and expected in said
    assert len(said) < 1000

READ = { # name -> content, column, prompts
    "one usual column": ("Caption\na fox\n", None, ["a fox"]),
    "one named column": ("a fox\na duck\n", "a fox", ["a duck"]),
    "comma at every end": ("prompt,\na fox,\na duck,\n", None, ["a fox", "a duck"]),
    "comma after a caption": ("caption,\na fox,\n", None, ["a fox"]),
    "an index": (",prompt\n0,a fox\n", None, ["a fox"]),
    "two indices and a comma at every end": (",,prompt,\n0,1,a fox,\n", None, ["a fox"]),
    "spaces after commas": ('id, prompt\n1, "a fox, a ""sly"" one"\n', None,
        ['a fox, a "sly" one']),
    "blank rows": ("\nid,prompt\n\n1,a fox\n,,,\n", None, ["a fox"]),
    "two lines": ('prompt\n"a fox\nand a duck"\n', None, ["a fox\nand a duck"]),
    "quotes within": ('prompt\na "sly" fox\n', None, ['a "sly" fox']),
    "semicolons in a prompt": ("prompt\na fox; digital art\n", None, ["a fox; digital art"]),
    "words that look like no value": ("prompt\nnull\nNA\n007\nnan\n", None,
        ["null", "NA", "007", "nan"]),
    "BOM and Windows": ("\ufeffprompt\r\na fox\r\n", None, ["a fox"]),
    "emoji": ("prompt\n狐 🦊\n", None, ["狐 🦊"])}

@pytest.mark.parametrize("content, column, expected", READ.values(), ids=READ)
def test_a_csv_file_that_is_clear_is_read(content, column, expected, tmp_path):
    assert load_prompts(written(tmp_path/"own.csv", content), column) == expected

# Prompts: text and JSON

@pytest.mark.parametrize("name, content, expected", [
    ("own.txt", "a fox".encode("utf-16-le"), "line 1 has NUL characters, as in UTF-16"),
    ("own.json", '["a fox"]'.encode("utf-16-le"), "line 1 has NUL characters, as in UTF-16"),
    ("own.jsonl", '"a fox"'.encode("utf-16-be"), "line 1 has NUL characters, as in UTF-16"),
    ("own.json", '["a duck", "a \\ud83e fox"]', r"entry 1 is 'a \ud83e fox', not text"),
    ("own.jsonl", '{"prompt": "a \\udd8a"}', r"entry 0 is 'a \udd8a', not text"),
    ("own.json", '["a \\u0000 fox"]', r"entry 0 is 'a \x00 fox', not text"),
    ("own.json", '[{"a \\ud83e": "a fox", "id": 1}]', r"name one of its columns: a \ud83e, id"),
    ("own.json", '[{"a\\nb": "a fox", "id": 1}]', "name one of its columns: a b, id"),
    ("own.json", "["*100_000, "recursion depth")])
def test_what_is_no_text_is_refused(name, content, expected, tmp_path):
    assert expected in error_of(load_prompts, written(tmp_path/name, content))

def test_two_halves_of_a_character_are_one(tmp_path):
    assert load_prompts(written(tmp_path/"own.json", '["a \\ud83e\\udd8a"]')) == ["a 🦊"]

# Tables

ROW = dict(experiment="run", method="prdp", seed=0, prompt_set="animals", prompt="a fox",
           scorer="colourfulness", base=0.5, tuned=0.75)

def table_of(path: Path, *changes: dict) -> pd.DataFrame:
    append_rows(path, [ROW | change for change in changes])
    return read_table(path)

TEXT = ["null", "NA", "nan", "None", "N/A", "001", "0", "1.50", "1e5", "True", "inf", "-", "",
        "#N/A", "a fox, art", 'a "sly" fox', "a fox\nand a duck", "a fox\r", "狐 🦊", " a fox"]

def test_text_in_a_table_of_evaluations_comes_back_as_it_was(tmp_path):
    for column in ("prompt", "experiment", "method", "prompt_set", "scorer"):
        table = table_of(tmp_path/f"{column}.csv", *({column: text} for text in TEXT))
        assert table[column].tolist() == TEXT
        assert table.seed.dtype == int and table.base.dtype == table.tuned.dtype == float
        assert table.tuned.tolist() == [0.75]*len(TEXT)

def test_all_prompts_that_look_like_no_value_count(tmp_path):
    table = table_of(tmp_path/"table.csv", *(dict(prompt=text) for text in ("null", "NA", "7")))
    assert gain_matrix(table).shape == (1, 3)

def test_experiments_of_two_files_are_of_one_kind(tmp_path):
    for name in ("001", "run"): append_rows(tmp_path/f"{name}.csv", [ROW | dict(experiment=name)])
    table = read_table(tmp_path/"001.csv", tmp_path/"run.csv")
    assert table.experiment.tolist() == ["001", "run"]

def test_numbers_that_are_none_stay_so(tmp_path):
    table = table_of(tmp_path/"table.csv", dict(base=float("nan")), dict(tuned=1e-300))
    assert np.isnan(table.base[0]) and table.tuned[1] == 1e-300

HEADER = ",".join(COLUMNS) + "\n"

@pytest.mark.parametrize("content, expected", [
    (HEADER + "run,prdp,0,animals,a fo", "row 2 has 5 fields, the header has 8"),
    (HEADER + "run,prdp,0,animals,a fox,x,0.5,high\n", "could not convert string to float: 'high'"),
    (HEADER + "run,prdp,0,animals,a fox,x,1,2\nrun,prdp,0,animals,a fox,art,x,1,2\n",
     "row 3 has 9 fields, the header has 8"),
    ("", "it is empty"), ("prompt\na fox\n", "it lacks experiment, method")])
def test_what_is_no_table_of_evaluations(content, expected, tmp_path):
    path = written(tmp_path/"table.csv", content)
    said = error_of(read_table, path)
    assert said.startswith(f"{str(path)!r} is no table of evaluations: ") and expected in said

RESULTS = [path for path in sorted((ROOT/"nbs/results").glob("*.csv"))
           if path.read_text(encoding="utf-8").startswith("experiment,")]

@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_results_of_the_book_read_as_before(path):
    pd.testing.assert_frame_equal(read_table(path), pd.read_csv(path), check_exact=True)

def test_rows_are_not_added_to_a_table_with_other_columns(tmp_path):
    for columns in (COLUMNS[::-1], COLUMNS[:-1], [*COLUMNS, "note"]):
        content = ",".join(columns) + "\r\n"
        path = written(tmp_path/"table.csv", content)
        said = error_of(append_rows, path, [ROW])
        assert said == (f"{str(path)!r} has the columns {', '.join(columns)}, the rows to add "
                        f"have {', '.join(COLUMNS)}: add them to another file")
        assert path.read_bytes() == content.encode()

@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
def test_a_missing_end_of_the_last_line_is_added(end, tmp_path):
    path = written(tmp_path/"table.csv", HEADER + "one,prdp,0,animals,a fox,x,0.1,0.2" + end)
    assert table_of(path, {}).experiment.tolist() == ["one", "run"]
    assert read_table(path).tuned.tolist() == [0.2, 0.75]

@pytest.mark.parametrize("content", ["", HEADER, HEADER.strip(), "\ufeff" + HEADER])
def test_a_file_without_rows_gets_them(content, tmp_path):
    path = written(tmp_path/"table.csv", content)
    table = table_of(path, {}, {})
    assert list(table) == COLUMNS and len(table) == 2

def test_the_command_refuses_such_a_table_before_it_samples(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prdp_nb.evaluation.evaluate_runs", lambda *a: pytest.fail("sampled"))
    output = written(tmp_path/"table.csv", ",".join(COLUMNS[::-1]) + "\n")
    assert evaluate_command(["run", "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"has the columns {', '.join(COLUMNS[::-1])}, the rows to add have " in said

def test_a_torn_row_of_metrics_is_not_read_as_nan(tmp_path):
    rows = [dict(epoch=epoch, kl=float("nan"), reward_mean=0.1 + 0.2) for epoch in (1, 2)]
    append_rows(tmp_path/"metrics.csv", rows)
    metrics = read_metrics(tmp_path)
    assert metrics.reward_mean.tolist() == [0.1 + 0.2]*2 and metrics.kl.isna().all()
    content = (tmp_path/"metrics.csv").read_text(encoding="utf-8")
    written(tmp_path/"metrics.csv", content.rpartition(",")[0])
    assert "metrics.csv' is torn: row 3 has 2 fields" in error_of(read_metrics, tmp_path)

# Encodings

def is_text(call: ast.Call) -> bool:
    "Does a call open a file as text? Those of other libraries and of the system do not."
    function = call.func
    if isinstance(function, ast.Attribute): return function.attr in ("read_text", "write_text")
    mode = call.args[1] if len(call.args) > 1 else ast.Constant("r")
    for keyword in call.keywords: mode = keyword.value if keyword.arg == "mode" else mode
    return isinstance(function, ast.Name) and function.id == "open" and "b" not in mode.value

def names_utf_8(call: ast.Call) -> bool:
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(isinstance(value, ast.Constant) and value.value in ("utf-8", "utf-8-sig")
               for value in given)

def without_encoding(source: str) -> list[int]: # lines
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if is_text(call) and not names_utf_8(call)]

@pytest.mark.parametrize("path", sorted((ROOT/"prdp_nb").glob("*.py")), ids=lambda path: path.stem)
def test_every_text_file_is_opened_as_utf_8(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []

@pytest.mark.parametrize("line, found", [
    ("open(path)", [1]), ("open(path, 'w')", [1]), ("open(path, mode='a')", [1]),
    ("path.read_text()", [1]), ("path.write_text(text)", [1]), ("open(path, 'rb')", []),
    ("open(path, encoding='utf-8')", []), ("path.read_text('utf-8-sig')", []),
    ("os.open(path, flags)", []), ("Image.open(path)", [])])
def test_a_forgotten_encoding_is_found(line, found): assert without_encoding(line) == found

# Where the default encoding is another

def test_prompts_and_settings_are_utf_8_where_the_default_is_not(tmp_path):
    import os, subprocess, sys
    written(tmp_path/"own.txt", "狐 🦊\n")
    code = ("import locale, sys; from prdp_nb.config import Config; from prdp_nb.prompts import load_prompts\n"
            "assert locale.getpreferredencoding(False).lower().replace('-', '') != 'utf8'\n"
            "Config(prompts='狐.txt').save('c.yaml'); assert Config.load('c.yaml').prompts == '狐.txt'\n"
            "assert load_prompts('own.txt') == ['狐 🦊']")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    plain |= dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONPATH=os.pathsep.join(sys.path))
    (tmp_path/"code.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "code.py"], cwd=tmp_path, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
