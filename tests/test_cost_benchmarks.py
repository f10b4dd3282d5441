"The benchmarks of cost, each at its smallest: what they count is right, what they keep is whole, and their page shows what the tables say."
import sys
from pathlib import Path
import pandas as pd, pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/"benchmarks"))
import beside_trl, epoch, our_epochs, subset, table
from common import write_rows
from prdp_nb.models import FAMILIES
from prdp_nb.training import run_epoch

@pytest.fixture(scope="module")
def trl_setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside_trl")
    beside_trl.write_pipeline(folder/"pipeline")
    (folder/"prompts.txt").write_text("\n".join(beside_trl.PROMPTS[:2]))
    return beside_trl.TINY | dict(pipeline=str(folder/"pipeline"), prompts=str(folder/"prompts.txt"), sample_batch=2, train_batch=2)

def test_bare_calls_are_those_of_an_epoch(tmp_path):
    epoch_row, bare_row = epoch.bare(tmp_path, rounds=1, tiny=True)
    assert (epoch_row["forward"], epoch_row["trained"]) == (2*2, 2) # at T = 2 without guidance: T to sample and T for the reference; T to learn
    assert 0 < epoch_row["decoding"] + epoch_row["reward"] + epoch_row["optimizer"] < epoch_row["seconds"]
    assert bare_row["kind"] == "bare" and bare_row["seconds"] > 0

def test_every_other_family_is_measured(tmp_path):
    rows = epoch.families(tmp_path, rounds=1, tiny=True)
    assert [(row["family"], row["kind"]) for row in rows] == [(kind, work) for kind in FAMILIES if kind != "StableDiffusionPipeline" for work in ("epoch", "bare")]
    evaluations = {row["family"]: (row["forward"], row["trained"]) for row in rows}
    assert evaluations["StableDiffusionXLPipeline"] == (2*4, 4) and evaluations["FluxPipeline"][0] == 4 + evaluations["FluxPipeline"][1] # one call a step; the last is no cell
    assert all(row["seconds"] > 0 for row in rows)

def test_replayed_calls_are_the_recorded_ones(tmp_path):
    trainer = epoch.ready(epoch.config(tmp_path, **epoch.TINY))
    calls = epoch.record(trainer.learner.policy, lambda: run_epoch(trainer, 1))
    again = epoch.record(trainer.learner.policy, lambda: epoch.replay(trainer.learner.policy, calls))
    assert [(graph, adapted, given[0].shape) for given, _, graph, adapted in again] == [(graph, adapted, given[0].shape) for given, _, graph, adapted in calls]
    assert {(graph, adapted) for *_, graph, adapted in calls} == {(False, True), (False, False), (True, True)} # sampling, reference, learning

def test_growth_changes_one_setting_at_a_time(tmp_path):
    rows = epoch.growth(tmp_path, rounds=1, tiny=True)
    assert [(row["axis"], row["factor"]) for row in rows] == [("base", 1), ("prompts_per_epoch", 2), ("images_per_prompt", 2), ("num_inference_steps", 2), ("cell_fraction", 0.5),
                                                              ("cell_fraction", 0.25), ("prompt_set", 100)]
    assert all(row["seconds"] > 0 for row in rows)

def test_memory_is_measured_as_its_test_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"tests"))
    import test_memory
    monkeypatch.setattr(test_memory, "resident_megabytes", lambda work, steps: 100.0*steps)
    assert [(row["work"], row["steps"], row["megabytes"]) for row in epoch.memory(tmp_path, 1, tiny=False)] == [("update", 5, 500.0), ("update", 20, 2000.0), ("update", 50, 5000.0), ("naive_update", 50, 5000.0)]

def test_subset_takes_turns_and_goes_on(tmp_path, prompt_file):
    tiny = subset.TINY | dict(prompts=str(prompt_file), eval_prompts=str(prompt_file))
    first = subset.measure(0, 0.001, tmp_path, tiny)
    assert [(row["cell_fraction"], row["epochs"]) for row in first] == [(1.0, 1), (0.5, 1), (0.25, 1)]
    assert subset.measure(0, 0.001, tmp_path, tiny) == first # interrupted after the training: nothing is trained again, and the scores are the same
    longer = subset.measure(0, 1.6*(max(row["seconds"] for row in first) + 0.05), tmp_path, tiny) # 0.05: seconds are rounded to tenths
    assert all(after["epochs"] > before["epochs"] for after, before in zip(longer, first))

@pytest.mark.parametrize("method, forward, trained", [("ddpo", 6, 4), ("prdp", 8, 4), ("prdp_quarter", 8, 1)])
def test_our_side_counts_its_evaluations(method, forward, trained, trl_setting, tmp_path):
    found = our_epochs.main(trl_setting | beside_trl.OURS[method] | dict(folder=str(tmp_path/"run")))
    assert (found["forward"], found["trained"]) == (forward, trained)

@pytest.mark.skipif(not (ROOT/".venv-trl/.installed").exists(), reason="TRL's environment is made by `make bench`")
def test_trl_runs_the_same_pipeline(trl_setting, tmp_path):
    theirs = beside_trl.measure(beside_trl.trl_python(ROOT/".venv-trl"), "trl_epochs.py", trl_setting)
    ours = our_epochs.main(trl_setting | beside_trl.OURS["ddpo"] | dict(folder=str(tmp_path/"run")))
    assert (theirs["forward"], theirs["trained"]) == (4, 4)
    assert theirs["fingerprint"] == pytest.approx(ours["fingerprint"], rel=1e-4)

def test_compare_takes_turns_at_the_fastest_batches(tmp_path, monkeypatch):
    def measure(python, script, settings):
        return dict(seconds=(1.0/settings["sample_batch"], 1.0), forward=20, trained=20, megabytes=1.0, fingerprint=mark[script], about={})
    mark = {"our_epochs.py": 1.0, "trl_epochs.py": 1.00001}
    monkeypatch.setattr(beside_trl, "measure", measure)
    rows = beside_trl.compare(Path("python"), beside_trl.TINY, ((2, 2), (4, 4)), 2, tmp_path)
    assert [(row["part"], row["method"], row["sample_batch"]) for row in rows] == [("scan", "trl", 2), ("scan", "trl", 4)] + [("compare", method, 4) for method in ("trl", *beside_trl.OURS)]*2
    mark["trl_epochs.py"] = 1.1
    with pytest.raises(RuntimeError, match="did not run the same pipeline"): beside_trl.compare(Path("python"), beside_trl.TINY, ((2, 2),), 1, tmp_path)

def test_page_shows_ratios_of_medians(tmp_path):
    where = dict(machine="a", python="3", date="today") | dict.fromkeys(table.PACKAGES, "1")
    times = [("epoch", 3.3), ("bare", 3.0), ("epoch", 2.2), ("bare", 2.0), ("epoch", 9.0), ("bare", 2.5)]
    write_rows(tmp_path/"bare.csv", [dict(kind=kind, seconds=s, images=2, forward=8, trained=4, decoding=0.1*s, reward=0.2*s, optimizer=0.3*s) | where for kind, s in times])
    text = table.page(tmp_path)
    assert "Ratio **1.320**" in text and "decoding takes 10.0%" in text and "no results/memory.csv" in text

@pytest.mark.parametrize("rewards, verdict", [([[0.7], [0.9]], "cannot"), ([[0.7, 0.71, 0.72], [0.8, 0.81, 0.82]], "can"), ([[0.7, 0.71, 0.9], [0.8, 0.81, 0.82]], "cannot")], ids=["one seed", "apart", "mixed"])
def test_page_tells_shares_apart_only_beyond_the_seeds(rewards, verdict, tmp_path):
    where = dict(machine="a", python="3", date="today") | dict.fromkeys(table.PACKAGES, "1")
    write_rows(tmp_path/"subset.csv", [dict(seed=seed, cell_fraction=share, epochs=3, seconds=9.0, epoch_seconds=3.0*share, reward_before=0.5, reward_after=reward) | where
                                       for share, of_share in zip((1.0, 0.5), rewards) for seed, reward in enumerate(of_share)])
    text = table.page(tmp_path)
    assert f"which share is best in equal time {verdict} be told (seeds: {len(rewards[0])})" in text and "| 0.5 | 1.5 | 0.50 |" in text

def test_page_is_current():
    assert (ROOT/"benchmarks/README.md").read_text(encoding="utf-8") == table.page(ROOT/"benchmarks/results"), "run python benchmarks/table.py"

def test_committed_tables_say_where_and_when():
    for path in (ROOT/"benchmarks/results").glob("*.csv"):
        if path.stem in table.PARTS: assert {"date", "machine", "python", *table.PACKAGES} <= set(pd.read_csv(path).columns), path
