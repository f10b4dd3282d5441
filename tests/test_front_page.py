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

def front() -> str: return markdown(ROOT/"nbs"/"index.ipynb")

def test_map_of_the_book_names_every_notebook():
    book = front().split("\n### ", 1)[1].split("\n## ")[0]
    rows = re.findall(r"\[(\w+)\]\((\w+)\.ipynb\)", book)
    assert rows == [(path.stem, path.stem) for path in NOTEBOOKS if path.stem != "index"]

def test_the_front_page_is_read_in_a_few_minutes():
    cells = json.loads((ROOT/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"]
    assert sum(len("".join(cell["source"]).split()) for cell in cells) <= 1300

def test_the_picture_of_stability_is_what_its_caption_says():
    import pandas as pd, stability_picture
    from PIL import Image
    table = stability_picture.curves()
    ends = table.groupby(["method", "seed"]).last()
    lost = (ends.quality < 0.1).groupby("method")
    assert lost.size().to_dict() == dict(ddpo_batch=10, grpo=10, prdp=10)
    assert lost.sum().to_dict() == dict(ddpo_batch=10, grpo=0, prdp=0)
    kl, quality = (ends[look].groupby("method").median() for look in ("kl", "quality"))
    said = re.search(r"it goes (\d+) nats away from the base model \(the median seed\), PRDP (\d+)\.", front())
    assert said.groups() == (f"{kl['grpo']:.0f}", f"{kl['prdp']:.0f}") and quality["grpo"] > quality["prdp"]
    runs = pd.read_csv(ROOT/"nbs/results/stability/runs.csv").query("method == 'ddpo_batch' and prompt_share > 0.9 and learning_rate == 1e-4 and warmup == 0")
    alive = runs.groupby("seed").quality.last()
    assert len(alive) == 10 and f"1e-3, DDPO is lost with every seed, PRDP and GRPO with none; at 1e-4 DDPO ends at {alive.mean():.2f}." in front()
    with Image.open(stability_picture.PICTURE) as picture:
        assert picture.info["Description"] == stability_picture.fingerprint(table), "the runs have changed: make readme"

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

def truths(name: str): # of the models of a chapter
    from prdp_nb.comparison import read_table
    table = read_table(ROOT/f"nbs/results/{name}.csv").query("scorer == 'emoji_truth'")
    return table.assign(gain=table.tuned - table.base)

def last_kl(name: str): # nats by method: a run's last epoch, the mean over seeds
    import pandas as pd
    return pd.read_csv(ROOT/f"nbs/results/{name}_metrics.csv").groupby(["method", "seed"]).kl.last().groupby("method").mean()

def table_means(table): # (before, after by method): means over seeds and prompts of a set, then over sets
    means = table.groupby(["method", "prompt_set"])[["base", "tuned"]].mean().groupby("method").mean()
    return means.base["prdp"], means.tuned

def in_brackets(text: str, words: str) -> tuple[str, ...]: # "WORDS number (low to high" -> the three numbers
    return re.search(rf"{words} ([\d.-]+) \((?:95 % interval )?([\d.-]+) to ([\d.-]+)\)", text).groups()

def test_results_beside_the_paper_are_those_of_the_runs():
    text = " ".join(front().split())
    for prompts, name, methods in (("45 prompts, here", "small_scale", "ddpo grpo prdp"), ("unseen prompts, here", "large_scale", "ddpo grpo prdp"),
                                   ("the same, with an offset for each prompt", "large_scale", "ddpo_share prdp_share")):
        before, after = table_means(truths(name).query("prompt_set != 'emoji_seen'"))
        row = re.search(rf"\| {prompts} \| EmojiTruth \| ([\d.]+) \|([^|]*)\|([^|]*)\|([^|]*)\|", text).groups()
        found = [number for number in map(str.strip, row) if number]
        assert found == [f"{number:.3f}" for number in (before, *after[methods.split()])]
        assert after[methods.split()].min() > before, "all methods learn"

def test_what_the_front_page_says_of_the_contest_is_what_the_runs_say():
    from prdp_nb.comparison import compare_methods
    text = " ".join(front().split())
    def once(name): return truths(name).drop_duplicates(["method", "seed", "prompt"]) # a prompt may be in two sets
    def less(name, other, one="prdp"): # its gain of truth less the other's, over all prompts once
        return tuple(f"{number:.3f}" for number in compare_methods(once(name).assign(prompt_set="all"), one, other).iloc[0][["difference", "low", "high"]])
    assert in_brackets(text, "PRDP gains more truth than DDPO by") == less("large_scale", "ddpo")
    assert in_brackets(text, "less GRPO's:") == less("large_scale", "grpo")
    assert in_brackets(text, "DDPO gains less by") == less("large_scale", "ddpo_share", "ddpo")
    assert in_brackets(text, "and loses one seed; PRDP by") == less("large_scale", "prdp_share")
    assert in_brackets(text, "PRDP's gain less DDPO's is") == less("small_scale", "ddpo")
    for said, kl in ((r"at (\d+) nats of KL in the last epoch where DDPO is at (\d+)", last_kl("large_scale")), (r"at (\d+) nats where DDPO is at (\d+)", last_kl("small_scale"))):
        assert re.search(said, text).groups() == (f"{kl['prdp']:.0f}", f"{kl['ddpo']:.0f}")
    gains = once("large_scale").groupby(["method", "seed"]).gain.mean()
    assert (gains[["grpo", "ddpo_share"]] < 0).groupby("method").sum().tolist() == [1, 1], "one seed of GRPO is lost, and one of DDPO with the offset"
    assert min(gains["prdp"].min(), gains["prdp_share"].min(), gains["ddpo"].min()) > 0, "no seed of the others is"
    sets = truths("large_scale").groupby(["prompt_set", "method"]).gain.mean().unstack()
    assert (sets["prdp"] > sets["ddpo"]).all() and (sets["prdp"] > 0).all()

PAPER = {"32_large_scale": (["0.2685 | 0.2665 | 0.2737 | 0.2656 | 0.2654 | 0.2750", "0.2464 | 0.2501 | 0.2673 | 0.2558 | 0.2570 | 0.2093", "0.3175 | 0.3050 | 0.3223 | 0.3175 | 0.3172 | 0.3159"]),
         "33_reward_hacking": ["5.49 | 9.52 | 9.70 | 8.62 | 7.45", "0.2836 | 0.2629 | 0.2647 | 0.2794 | 0.2841"],
         "34_several_rewards": ["2.888 | 2.927 | 2.877 | 2.883 | 2.984", "3.208 | 3.296 | 3.264 | 3.274 | 3.214"]}

@pytest.mark.parametrize("chapter", PAPER)
def test_a_chapter_of_results_has_the_papers_table(chapter):
    for row in PAPER[chapter]: assert f"| {row} |" in markdown(ROOT/f"nbs/{chapter}.ipynb")

def test_the_papers_row_of_unseen_prompts_is_the_mean_of_its_table():
    rows = [[float(number) for number in row.split(" | ")[1:]] for row in PAPER["32_large_scale"]]
    before, ddpo, prdp = (f"{sum(row)/5:.4f}" for row in rows)
    assert f"| unseen prompts, the paper | HPSv2 | {before} | {ddpo} | | {prdp} |" in front()

def test_presets_of_the_front_page_exist():
    from prdp_nb.config import Config
    assert {"colab_t4_small", "flux_lora_hpsv2", "paper_large_hpsv2"} <= set(re.findall(r"--preset (\w+)", markdown(ROOT/"nbs"/"index.ipynb"))) <= set(Config.presets())
