"The front page: README.md is made from it, its links lead somewhere, its map is complete, its code runs."
import json, re, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"tools"))
import readme
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))

def relative_links(text: str) -> list[str]:
    return [link for _, link in readme.LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]

def markdown(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")

def test_readme_turns_links_and_hides_directives():
    text = readme.readme(new_notebook(cells=[
        new_markdown_cell('![a](images/a.png) [b](01_b.ipynb#c) [c](../LICENSE) [d](https://d.org) [e](#e)\n<img src="images/f.png">'),
        new_code_cell("#| hide\nsecret()"), new_code_cell("#| eval: false\nshown()")]))
    for expected in ("](nbs/images/a.png)", "](nbs/01_b.ipynb#c)", "](LICENSE)", "](https://d.org)", "](#e)", 'src="nbs/images/f.png"',
                     "```python\nshown()\n```"):
        assert expected in text
    assert "secret" not in text and "#|" not in text

def test_links_of_readme_exist():
    missing = [link for link in relative_links((ROOT/"README.md").read_text(encoding="utf-8")) if not (ROOT/link.split("#")[0]).exists()]
    assert not missing

@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_notebook_exist(notebook):
    missing = [link for link in relative_links(markdown(notebook)) if not (notebook.parent/link.split("#")[0]).exists()]
    assert not missing

def texts(): # (path, text) of everything that may name a chapter
    for pattern in ("*.md", "benchmarks/*.md", "benchmarks/*.py", "configs/*", "tests/*.py", "tools/*.py", ".github/**/*.yml", "Makefile", "settings.ini"):
        for path in ROOT.glob(pattern): yield path, path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        yield path, "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])

def test_no_text_names_a_chapter_that_is_gone():
    known = {path.stem for path in NOTEBOOKS}
    named = {(path.name, name) for path, text in texts()
             for name in re.findall(r"(?<![\w/.-])([0-9]{2}_[a-z][a-z0-9_]+)\b", text)}
    gone = [(path, name) for path, name in named if name not in known]
    assert not gone

def test_map_of_the_book_names_every_notebook():
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.ipynb\)", markdown(ROOT/"nbs"/"index.ipynb"), flags=re.M)
    assert rows == [(path.stem, path.stem) for path in NOTEBOOKS if path.stem != "index"]

def test_map_states_the_time_and_the_badge_of_each_notebook():
    rows = re.findall(r"^\| \[(\w+)\].*\| (.+?) \| (\[!\[Open In Colab\].+?) \|$", markdown(ROOT/"nbs"/"index.ipynb"), flags=re.M)
    assert [name for name, _, _ in rows] == [path.stem for path in NOTEBOOKS if path.stem != "index"]
    for name, time, badge in rows:
        opening = " ".join(markdown(ROOT/"nbs"/f"{name}.ipynb").split("\n## ")[0].split())
        statement = re.search(r"\*\*(?:How long it (?:runs|takes)|Time)\.\*\* (.+?)\.(?: |$)", opening)[1]
        assert re.search(rf"(^|for |in ){re.escape(time)}\b", statement, flags=re.I), f"{name}: the map says {time!r}, the notebook {statement!r}"
        assert badge in opening and badge.endswith(f"/nbs/{name}.ipynb)"), name

def test_own_reward_of_the_front_page_trains(tmp_path, monkeypatch):
    from prdp_nb.config import Config
    code = re.search(r"```python\n(.*?)```", (ROOT/"README.md").read_text(encoding="utf-8"), flags=re.S)[1]
    (tmp_path/"two.txt").write_text("a painting of a fox\na painting of a cow\n")
    tiny = dict(epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, eval_prompts="two.txt", eval_images_per_prompt=1)
    preset = Config.preset
    monkeypatch.setattr(Config, "preset", lambda name, **given: preset(name, **given, **tiny))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["run"].resolve() == tmp_path/"runs"/"redness" and (names["run"]/"final").is_dir()

def test_figures_of_the_front_page_are_those_of_the_runs():
    import pandas as pd
    table = pd.read_csv(ROOT/"nbs/results/small_scale.csv").query("method == 'prdp'")
    text = " ".join(markdown(ROOT/"nbs"/"index.ipynb").split())
    for scorer, pattern in dict(emoji_score=r"EmojiScore rises from ([\d.]+) to ([\d.]+), ([\d.]+) and ([\d.]+),", emoji_judge=r"judge from ([\d.]+) to ([\d.]+), ([\d.]+) and ([\d.]+) ").items():
        means = table.query("scorer == @scorer").groupby("seed")[["base", "tuned"]].mean()
        assert re.search(pattern, text).groups() == tuple(f"{mean:.3f}" for mean in (means.base[0], *means.tuned))

def test_results_beside_the_paper_are_those_of_the_runs():
    import pandas as pd
    from prdp_nb.comparison import compare_methods
    table = pd.read_csv(ROOT/"nbs/results/small_scale.csv").query("scorer == 'emoji_score'")
    means, text = table.groupby("method")[["base", "tuned"]].mean(), " ".join(markdown(ROOT/"nbs"/"index.ipynb").split())
    expected = [means.base["prdp"], *means.tuned[["ddpo", "grpo", "prdp"]]]
    assert re.search(r"\| here: embedded model.*?\| EmojiScore \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text).groups() == tuple(f"{mean:.3f}" for mean in expected)
    ratio = compare_methods(table, "prdp", "ddpo").iloc[0][["ratio", "ratio_low", "ratio_high"]]
    assert re.search(r"gain is ([\d.]+) of DDPO's \(95 % interval ([\d.]+) to ([\d.]+)\)", text).groups() == tuple(f"{number:.2f}" for number in ratio)
    kl = pd.read_csv(ROOT/"nbs/results/small_scale_metrics.csv").groupby(["method", "seed"]).kl.apply(lambda kl: kl.tail(5).mean()).groupby("method").mean()
    assert re.search(r"at (\d+) nats of KL where the others are at (\d+) and (\d+)\.", text).groups() == tuple(f"{kl[method]:.0f}" for method in ("prdp", "ddpo", "grpo"))

def test_results_at_100_000_prompts_are_those_of_the_runs():
    import pandas as pd
    from prdp_nb.comparison import compare_methods, summarise
    table, text = pd.read_csv(ROOT/"nbs/results/large_scale.csv").query("scorer == 'emoji_score'"), markdown(ROOT/"nbs"/"index.ipynb")
    means = table.groupby(["method", "prompt_set"], sort=False)[["base", "tuned"]].mean()
    for row, expected in {"before": means.base["prdp"], "DDPO": means.tuned["ddpo"], "GRPO": means.tuned["grpo"], "PRDP": means.tuned["prdp"]}.items():
        assert re.search(rf"^\| here: {row} \| (.+) \|$", text, flags=re.M)[1].split(" | ") == [f"{mean:.3f}" for mean in expected]
    assert summarise(table).low.min() > 0 and (means.tuned.unstack(0).idxmax(axis=1) == "prdp").all(), "clear of zero on all six sets, and PRDP's the highest on each"
    overall = compare_methods(table.drop_duplicates(["method", "seed", "prompt"]).assign(prompt_set="all"), "prdp", "ddpo").iloc[0][["difference", "low", "high"]]
    assert re.search(r"larger than DDPO's by ([\d.-]+) \(95 % interval ([\d.-]+) to ([\d.-]+)\)", text).groups() == tuple(f"{number:.3f}" for number in overall)

def test_results_of_a_hacked_reward_are_those_of_the_runs():
    import pandas as pd
    means, text = pd.read_csv(ROOT/"nbs/results/reward_hacking.csv").groupby(["scorer", "method"])[["base", "tuned"]].mean(), markdown(ROOT/"nbs"/"index.ipynb")
    for name, scorer, digits in (("EmojiAesthetic", "emoji_aesthetic", 2), ("EmojiScore", "emoji_score", 3)):
        expected = [means.base[scorer]["ddpo"], *means.tuned[scorer][["ddpo", "prdp_30", "prdp_300", "prdp_3000"]]]
        assert re.search(rf"^\| here: {name}, .+? \| (.+) \|$", text, flags=re.M)[1].split(" | ") == [f"{mean:.{digits}f}" for mean in expected]

def test_results_of_several_rewards_are_those_of_the_runs():
    import pandas as pd
    weights, text = dict(emoji_score=1, emoji_aesthetic=0.1, jpeg_compressibility=0.5), markdown(ROOT/"nbs"/"index.ipynb")
    table = pd.read_csv(ROOT/"nbs/results/several_rewards.csv").query("prompt_set != 'emoji_seen'")
    means = table.groupby(["scorer", "prompt_set"], sort=False)[["base", "tuned"]].mean().loc[list(weights)]
    sums = means.mul(means.index.get_level_values(0).map(weights), axis=0).groupby("prompt_set", sort=False).sum()
    for row, column in dict(before="base", after="tuned").items():
        assert re.search(rf"^\| here: the sum {row} \| (.+) \|$", text, flags=re.M)[1].split(" | ") == [f"{mean:.3f}" for mean in sums[column]]
    risen = (means.tuned > means.base).groupby("scorer").agg(["all", "any"])
    assert risen.loc[["emoji_score", "emoji_aesthetic"], "all"].all() and not risen.loc["jpeg_compressibility", "any"]

def test_presets_of_the_front_page_exist():
    from prdp_nb.config import Config
    assert {"emoji_small", "colab_t4_small", "paper_large_hpsv2"} <= set(re.findall(r"--preset (\w+)", markdown(ROOT/"nbs"/"index.ipynb"))) <= set(Config.presets())
