"""Guards 10_rewards, 22_scoring and 24_training: what a run does not notice of its reward.

Rewards have the name of another one, are mended while a run pauses, work in one thread only, say
the same of everything, or fail while much is still to be sampled."""
import asyncio
import signal
import sqlite3
import threading
import time
import warnings
from concurrent.futures import wait

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from prdp_nb import scoring
from prdp_nb.algorithm import train
from prdp_nb.baselines import PromptStatistics, ddpo_batch_loss, grpo_loss
from prdp_nb.commands import evaluate_command, sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.evaluation import evaluate_runs
from prdp_nb.gradients import coefficients
from prdp_nb.lab import Lab
from prdp_nb.learner import FIRST_FILE, check_scores_of, first_scores, warn_of_spike
from prdp_nb.objectives import Objective
from prdp_nb.rewards import REWARDS, Reward, RewardError, as_reward, compute_rewards
from prdp_nb.runs import read_metrics
from prdp_nb.scoring import RewardThreads, Scoring, retrying, score_terms
from prdp_nb.training import Trainer, check_run, warn_of_equal_rewards

pytestmark = pytest.mark.usefixtures("quick_pictures")
ANY = Image.new("RGB", (4, 4))

TINY = dict(
    epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2, learning_rate=1e-2,
    reward="jpeg_compressibility", eval_images_per_prompt=1, eval_rewards=(), save_every=1,
    reward_retries=0)


@pytest.fixture(scope="module")
def tiny(tiny_model, prompt_file):
    "Makes configurations of runs of seconds."
    given = TINY | dict(model=str(tiny_model), prompts=str(prompt_file))
    return lambda folder, **fields: Config(**(given | dict(output_dir=str(folder)) | fields))


def means(images): return [float(np.asarray(image).mean()) for image in images]


# Which reward a run has


@pytest.fixture(scope="module")
def of_object(tiny, tmp_path_factory):
    "A run on a function with the name of another reward, and that function."
    def colourfulness(images, prompts): return means(images)
    folder = tmp_path_factory.mktemp("run")/"of_object"
    return Trainer(tiny(folder), reward=colourfulness).train(), colourfulness


def test_a_function_with_the_name_of_a_reward_is_not_taken_for_it(of_object, capsys, tmp_path):
    run, _ = of_object
    assert Config.load(run/"config.yaml").reward == "object colourfulness"
    with pytest.raises(ValueError, match=r"give it again: Trainer.resume\(.*, reward=...\)"):
        Trainer.resume(run, epochs=2)
    said = "'object colourfulness' was handed in by a program and cannot be loaded by its name"
    with pytest.raises(ValueError, match=said): Trainer(Config.load(run/"config.yaml"))
    for arguments in (["--resume", str(run)],
                      ["--config", str(run/"config.yaml"), "--output_dir", str(tmp_path/"new")]):
        assert train_command(arguments) == 1
        assert "object colourfulness" in capsys.readouterr().err
    assert not (tmp_path/"new").exists()
    assert read_metrics(run).epoch.tolist() == [1]


def test_its_run_can_be_sampled_and_evaluated(of_object, capsys, tmp_path):
    run, own = of_object
    output = ["--output", str(tmp_path/"fox.png")]
    assert sample_command([str(run), "a painting of a fox", *output]) == 0
    assert evaluate_command([str(run)]) == 1
    assert "name another scorer (--rewards)" in capsys.readouterr().err
    assert evaluate_command([str(run), "--rewards", "colourfulness"]) == 0
    found = evaluate_runs(run, rewards=own)
    table = pd.read_csv(run/"evaluation.csv")
    assert found.scorer.unique().tolist() == table.scorer.unique().tolist() == ["colourfulness"]
    assert np.allclose(found[["base", "tuned"]], table[["base", "tuned"]], rtol=1e-5)


def test_a_reward_by_name_is_the_same_wherever_it_is_given(tiny, tmp_path):
    text = "2*colourfulness + -1*jpeg_compressibility"
    here = Trainer(tiny(tmp_path/"here"), reward=text).train()
    there = Trainer(tiny(tmp_path/"there", reward=text)).train()
    assert train_command(["--resume", str(here), "--epochs", "2"]) == 0
    assert train_command(["--resume", str(there), "--epochs", "2"]) == 0
    written = [(run/"config.yaml").read_text().replace(run.name, "") for run in (here, there)]
    assert written[0] == written[1]
    assert read_metrics(here).drop(columns="seconds").equals(
        read_metrics(there).drop(columns="seconds"))
    tables = [evaluate_runs(run).drop(columns="experiment") for run in (here, there)]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0].scorer.unique().tolist() == [text]


def test_a_function_does_not_hide_the_scorer_whose_name_it_has(of_object, tiny, tmp_path):
    _, own = of_object
    run = Trainer(tiny(tmp_path/"run", eval_rewards=("colourfulness",)), reward=own).train()
    table = pd.read_csv(run/"evaluation.csv")
    assert table.scorer.unique().tolist() == ["colourfulness", "object colourfulness"]
    base = table.pivot(index="prompt", columns="scorer", values="base")
    assert (base["colourfulness"] != base["object colourfulness"]).all()


# A reward that has changed


def shifted(shift):
    def colourfulness(images, prompts): return [mean + shift for mean in means(images)]
    return colourfulness


def test_a_reward_that_was_mended_in_between_is_refused(tiny, tmp_path):
    run = Trainer(tiny(tmp_path/"run"), reward=shifted(0)).train()
    def files(): return {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    before = files()
    with pytest.raises(ValueError, match="is not what the run in .* began with.*start a new run"):
        Trainer.resume(run, reward=shifted(5), epochs=2).train()
    assert files() == before # nothing is written
    Trainer.resume(run, reward=shifted(0), epochs=2).train()
    (run/FIRST_FILE).unlink() # on purpose, as the message says
    Trainer.resume(run, reward=shifted(500), epochs=3).train()
    table = pd.read_csv(run/"evaluation.csv")
    assert (table.base > 500).all() and (table.tuned > 500).all() # one reward, before and after


def test_a_name_that_has_come_to_mean_another_reward_is_refused(tiny, tmp_path, monkeypatch):
    run = Trainer(tiny(tmp_path/"run", eval_rewards=("colourfulness",))).train()
    monkeypatch.setitem(REWARDS, "colourfulness", REWARDS["jpeg_incompressibility"])
    with pytest.raises(ValueError, match=r"colourfulness \(JPEGIncompressibility\) is not what"):
        Trainer.resume(run, epochs=2).train() # a scorer of the table alone
    monkeypatch.undo()
    monkeypatch.setitem(REWARDS, "jpeg_compressibility", REWARDS["jpeg_incompressibility"])
    with pytest.raises(ValueError, match=r"reward \(JPEGIncompressibility\) is not what"):
        Trainer.resume(run, epochs=2).train()


def test_a_reward_in_a_new_place_goes_on_and_another_one_does_not(tiny, tmp_path, monkeypatch):
    run = Trainer(tiny(tmp_path/"run", reward="colourfulness")).train()
    monkeypatch.setitem(REWARDS, "moved", REWARDS["colourfulness"])
    resume = ["--resume", str(run), "--epochs", "2", "--reward"]
    assert train_command([*resume, "jpeg_compressibility"]) == 1
    assert Config.load(run/"config.yaml").reward == "colourfulness"
    assert train_command([*resume, "moved"]) == 0
    assert Config.load(run/"config.yaml").reward == "moved"
    assert read_metrics(run).epoch.tolist() == [1, 2]


def test_a_reward_that_was_mended_for_another_prompt_is_refused(tiny, tmp_path):
    def brightness(images, prompts): return means(images)
    run = Trainer(tiny(tmp_path/"run"), reward=brightness).train()
    first, *others = Trainer.resume(run, reward=brightness, epochs=2).collector.prompts
    def mended(images, prompts):
        return [mean + 500*(prompt in others) for mean, prompt in zip(means(images), prompts)]
    mended.__name__ = "brightness"
    with pytest.raises(ValueError, match=f"an image of '{others[0]}' got .* then and gets"):
        Trainer.resume(run, reward=mended, epochs=2).train()


def test_a_reward_that_compares_the_images_of_a_call_goes_on(tiny, tmp_path):
    def above_the_others(images, prompts):
        found = np.array(means(images))
        return (found - found.mean()).tolist()
    run = Trainer(tiny(tmp_path/"run", eval_images_per_prompt=2), reward=above_the_others).train()
    Trainer.resume(run, reward=above_the_others, epochs=2).train()
    assert read_metrics(run).epoch.tolist() == [1, 2]


ROW_OF = "reward_mean/{}".format

class Moved(type(as_reward("colourfulness"))): "The same under another name."

@pytest.mark.parametrize("then, columns", [
    ("0.5*moved + 2*jpeg_compressibility", ["Moved", "JPEGCompressibility"]),
    ("2*jpeg_compressibility + 0.5*colourfulness", ["JPEGCompressibility", "Colourfulness"])])
def test_a_sum_goes_on_with_a_term_that_moved_or_in_another_order(then, columns, tiny, tmp_path, monkeypatch):
    run = Trainer(tiny(tmp_path/"run", reward="0.5*colourfulness + 2*jpeg_compressibility")).train()
    before = read_metrics(run).iloc[0]
    monkeypatch.setitem(REWARDS, "moved", "test_reward_faults:Moved")
    assert train_command(["--resume", str(run), "--epochs", "2", "--reward", then]) == 0
    found = read_metrics(run)
    assert found.epoch.tolist() == [1, 2] and not found.isna().any(axis=None)
    assert list(found.filter(like="reward_mean/")) == list(map(ROW_OF, columns))
    assert found[ROW_OF("JPEGCompressibility")][0] == before[ROW_OF("JPEGCompressibility")]
    other, = {*columns} - {"JPEGCompressibility"}
    assert found[ROW_OF(other)][0] == before[ROW_OF("Colourfulness")]


def test_a_sum_whose_terms_cannot_be_told_apart_is_refused_before_anything_is_written(tiny, tmp_path, monkeypatch, capsys):
    run = Trainer(tiny(tmp_path/"run", reward="0.5*colourfulness + 2*jpeg_compressibility")).train()
    monkeypatch.setitem(REWARDS, "moved", "test_reward_faults:Moved")
    def files(): return {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    before = files()
    assert train_command(["--resume", str(run), "--epochs", "2", "--reward", "2*jpeg_compressibility + 0.5*moved"]) == 1
    assert "one with a new name keeps its place" in capsys.readouterr().err and files() == before


def test_a_reward_that_draws_random_numbers_goes_on(tmp_path):
    def random(images, prompts): return 100 + np.random.default_rng().normal(size=len(images))
    def off(images, prompts): return random(images, prompts) + 100
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(16)]
    (tmp_path/"checkpoints").mkdir()
    (tmp_path/FIRST_FILE).write_bytes(first_scores(dict(reward=random), "a fox", images))
    for _ in range(100): check_scores_of(dict(reward=random), tmp_path)
    with pytest.raises(ValueError, match="is not what the run"):
        check_scores_of(dict(reward=off), tmp_path)


# Two of one name


def test_no_term_of_a_sum_is_lost(tiny, tmp_path):
    def one(images, prompts): return means(images)
    def two(images, prompts): return [-1.0]*len(images)
    two.__name__ = "one"
    both = 2*as_reward(one) + 3*as_reward(two)
    run = Trainer(tiny(tmp_path/"run"), reward=both).train()
    metrics = read_metrics(run)
    terms = metrics.filter(like="reward_mean/")
    assert list(terms) == ["reward_mean/one (1)", "reward_mean/one (2)"]
    np.testing.assert_allclose(terms.to_numpy() @ [2, 3], metrics.reward_mean, rtol=1e-5)
    table = evaluate_runs(run, rewards=[one, two])
    assert table.scorer.unique().tolist() == ["one (1)", "one (2)"]


def test_three_of_a_name_and_one_that_looks_numbered():
    names = ["one", "one (3)", "one"]
    def named(name):
        def reward(images, prompts): return [0.0]*len(images)
        reward.__name__ = name
        return as_reward(reward)
    total = sum((named(name) for name in names[1:]), named(names[0]))
    assert len(score_terms(total, [ANY], ["a fox"])[1]) == 3


# Rewards that work in one thread only


class Sqlite(Reward):
    "Scores from a database, whose connection belongs to the thread that opened it."
    def __init__(self): self.connection, self.threads = None, []
    def __call__(self, images, prompts):
        self.threads.append(threading.get_ident())
        if not self.connection: self.connection = sqlite3.connect(":memory:")
        return [self.connection.execute("select ?", (mean,)).fetchone()[0]
                for mean in means(images)]


def test_a_run_calls_its_reward_in_one_thread(tiny, tmp_path):
    reward = Sqlite()
    run = Trainer(tiny(tmp_path/"run", epochs=3), reward=2*reward + reward).train()
    assert read_metrics(run).epoch.tolist() == [1, 2, 3]
    assert len(reward.threads) == 2*(3 + 3 + 1) # noise, first images, before; epochs; after
    assert len({*reward.threads}) == 1 and threading.get_ident() not in reward.threads


def test_so_does_an_evaluation(of_object):
    (run, _), reward = of_object, Sqlite()
    evaluate_runs([run, run], rewards=[reward])
    assert len({*reward.threads}) == 1 and threading.get_ident() not in reward.threads


def alarm(images, prompts):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return means(images)


def loop(images, prompts):
    asyncio.get_event_loop()
    return means(images)


class Made(Sqlite):
    def __init__(self):
        super().__init__()
        self.connection = sqlite3.connect(":memory:") # in the thread that makes the reward


@pytest.mark.parametrize("reward, says", [
    (alarm, "signal only works in main thread"), (loop, "no current event loop in thread"),
    (Made(), "SQLite objects created in a thread can only be used in that same thread")],
    ids=["alarm", "loop", "sqlite"])
def test_what_cannot_work_in_that_thread_is_met_before_the_run(reward, says, tiny, tmp_path):
    with pytest.raises(RewardError, match=says): Trainer(tiny(tmp_path/"run"), reward).train()
    assert not (tmp_path/"run").exists()


def test_rewards_need_no_gradients_in_their_thread():
    seen = []
    def enabled(images, prompts):
        seen.append(torch.is_grad_enabled())
        return [0.0]*len(images)
    RewardThreads(torch.device("cpu"))(as_reward(enabled))([None], ["a fox"])
    assert seen == [False]


def test_each_thread_of_a_reward_is_on_the_gpu_of_the_run(monkeypatch):
    chosen = {} # thread -> device
    monkeypatch.setattr(torch.cuda, "set_device",
                        lambda device: chosen.update({threading.get_ident(): device}))
    barrier, asked = threading.Barrier(4), []
    class Service(Reward):
        workers = 4
        def __call__(self, images, prompts):
            asked.append(threading.get_ident())
            barrier.wait(60) # four calls are under way at once
            return [0.0]*len(images)
    device = torch.device("cuda:1")
    threads = RewardThreads(device)
    service = threads(Service())
    callers = [threading.Thread(target=service, args=([None], ["a fox"])) for _ in range(4)]
    for caller in callers: caller.start()
    for caller in callers: caller.join()
    assert {thread: chosen[thread] for thread in asked} == dict.fromkeys(asked, device)
    assert len({*asked}) == 4
    threads(as_reward(lambda images, prompts: [float(chosen[threading.get_ident()] == device)])
            )([None], ["a fox"]) # the one thread as well
    assert len(chosen) == 5


def test_trainer_and_evaluation_name_their_device(of_object, tiny, tmp_path, monkeypatch):
    seen = []
    real = scoring.use_device
    def noted(device): seen.append(device); real(device)
    monkeypatch.setattr(scoring, "use_device", noted)
    check_run(Trainer(tiny(tmp_path/"run", device="cpu")))
    assert seen == [torch.device("cpu")]
    evaluate_runs(of_object[0], rewards="colourfulness", device="cpu")
    assert seen == [torch.device("cpu")]*2


# A reward that says the same of everything


def warned_of(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "nothing to learn from" in str(w.message)]


def test_a_constant_reward_is_said_once(tiny, tmp_path):
    def constant(images, prompts): return [0.5]*len(images)
    said = warned_of(Trainer(tiny(tmp_path/"run", epochs=7), reward=constant).train)
    assert len(said) == 1
    assert "for five epochs all images of a prompt have had the same reward, the last 0.5" in said[0]


def test_what_counts_as_constant_depends_on_the_objective(tiny, tmp_path):
    by_prompt, equal = torch.tensor([[0., 0.], [1., 1.]]), torch.full((3, 1), 0.5)
    trainer = Trainer(tiny(tmp_path/"run"))
    def said_of(rewards, epochs, compares):
        trainer.progress.alike, trainer.learner.objective.compares_images = 0, compares
        def epoch_by_epoch():
            for _ in range(epochs): warn_of_equal_rewards(trainer, rewards)
        return len(warned_of(epoch_by_epoch))
    assert [said_of(by_prompt, epochs, True) for epochs in (4, 5, 20)] == [0, 1, 1]
    assert said_of(by_prompt, 20, False) == 0 # it learns from the difference of the prompts
    assert said_of(equal, 20, False) == 1
    assert said_of(equal[:1], 20, False) == 0 # a single image an epoch differs from none


# A reward that fails


def test_nothing_more_is_sampled_once_the_reward_has_failed(tiny, tmp_path, monkeypatch):
    sampled, add = [], Scoring.add
    def later(images, prompts): return 1/0 if sampled else means(images)
    def add_and_wait(self, images):
        sampled.append(len(images))
        add(self, images)
        wait([answer for _, answer in self.groups]) # however busy the machine is
    monkeypatch.setattr(Scoring, "add", add_and_wait)
    config = tiny(tmp_path/"run", prompts_per_epoch=3, batch_size=2)
    with pytest.raises(RewardError, match="^epoch 1: reward later raised ZeroDivisionError"):
        Trainer(config, reward=later).train()
    assert sampled == [2, 2] # the first batch failed, the second was under way, there is no third


def test_a_failure_does_not_wait_for_slower_answers(tiny, tmp_path):
    release, waited_for, ended = threading.Event(), threading.Event(), []
    class Slow(Reward):
        workers = 2
        def __call__(self, images, prompts):
            if prompts[0] == "slow":
                release.wait(20)
                ended.append("slow")
                return [0.0]*len(images)
            assert waited_for.wait(20)
            raise ValueError("down")
    with pytest.raises(RewardError, match="down"):
        with Scoring(Slow(), ["slow", "fast"], tiny(tmp_path/"run")) as under_way:
            under_way.add([ANY]*4)
            threading.Timer(0.2, waited_for.set).start()
            under_way.wait() # for the slow one first
    assert ended == []
    release.set()


@pytest.mark.parametrize("on_reward_error", ["stop", "skip_prompt"])
def test_ctrl_c_does_not_wait_for_further_attempts(on_reward_error, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "RETRY_SECONDS", 3600.0)
    failed, attempts = threading.Event(), []
    def down(images, prompts):
        attempts.append(len(images))
        failed.set()
        raise TimeoutError("no answer")
    config = tiny(tmp_path/"run", reward_retries=5, on_reward_error=on_reward_error)
    with warnings.catch_warnings(), pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        with Scoring(as_reward(down), ["a fox", "a duck"], config) as under_way:
            under_way.add([ANY]*4)
            assert failed.wait(60)
            raise KeyboardInterrupt
    until = time.monotonic() + 60
    while any(thread.is_alive() for thread in under_way.threads._threads):
        assert time.monotonic() < until # an hour is not waited for
        time.sleep(0.01)
    assert attempts == [4]


# What an attempt leaves behind, and numbers of other kinds


class Spoils(Reward):
    "Changes what it is given, and fails the first time."
    def __init__(self, takes_tensors): self.takes_tensors, self.calls = takes_tensors, 0
    def __call__(self, images, prompts):
        self.calls += 1
        if self.takes_tensors: scores = images.sub_(0.5).div_(0.25).mean((1, 2, 3)).tolist()
        else:
            images.reverse()
            prompts.pop()
            scores = means(images)
        if self.calls == 1: raise RuntimeError("a hiccup")
        return scores


@pytest.mark.parametrize("takes_tensors", [True, False])
def test_another_attempt_gets_what_the_first_one_got(takes_tensors, monkeypatch):
    monkeypatch.setattr(scoring, "RETRY_SECONDS", 0)
    images = [Image.new("RGB", (4, 4), (level,)*3) for level in (10, 20, 30)]
    once = Spoils(takes_tensors)
    once.calls = 1 # which does not fail
    expected = compute_rewards(once, images, ["a", "b", "c"]).tolist()
    with pytest.warns(match="a hiccup"):
        found = compute_rewards(retrying(Spoils(takes_tensors), 1), images, ["a", "b", "c"])
    assert found.tolist() == expected


@pytest.mark.parametrize("rewards", [torch.tensor([[1, 2, 3, 4]]),
                                     torch.tensor([[True, False, True, True]]),
                                     torch.tensor([[1.125, 1.25, 0.5, 2]], dtype=torch.float16)])
def test_rewards_of_any_kind_of_number_give_the_advantages_of_float32(rewards):
    torch.manual_seed(0)
    log_probs = torch.randn(1, 4, 3)
    for loss in (grpo_loss, ddpo_batch_loss):
        gradients = [coefficients(lambda now: loss(now, log_probs, given, clip_range=1.0), log_probs)[1]
                     for given in (rewards, rewards.float())]
        assert torch.equal(*gradients) and gradients[0].unique().numel() > 1
    found, expected = (PromptStatistics()(["a"], given) for given in (rewards, rewards.float()))
    assert torch.equal(found, expected) and found.dtype == torch.float32


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float16])
def test_a_world_may_reward_with_any_kind_of_number(kind):
    world = Lab()
    rewarded = world.reward
    world.reward = lambda samples, prompts: (rewarded(samples, prompts) > 0.5).to(kind)
    grpo = Objective(grpo_loss, "log_probs", clip_range=1e-2)
    row, = train(world.policy(), world, grpo, epochs=1, prompts_per_epoch=2, images_per_prompt=4,
                 learning_rate=1e-3)
    assert 0 <= row["reward_mean"] <= 1


def test_an_error_keeps_its_kind_whatever_its_constructor_asks_for():
    class Busy(RewardError):
        def __init__(self, service, seconds): super().__init__(f"{service}: {seconds} s")
    with pytest.raises(MemoryError, match="epoch 3: Unable to allocate"), scoring.located("epoch 3"):
        np.empty((10**6, 10**6, 10))
    with pytest.raises(RewardError, match="epoch 3: a: 5 s"), scoring.located("epoch 3"):
        raise Busy("a", 5)


def test_epochs_of_equal_rewards_are_no_usual_gradients():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_spike(2.5, [0.0]*20, 7)
        warn_of_spike(2.5, [0.0]*15 + [2.0]*5, 21)
    with pytest.warns(match="10000000 times"): warn_of_spike(2e7, [0.0]*15 + [2.0]*5, 21)
