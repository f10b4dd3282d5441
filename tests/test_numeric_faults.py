"""Guards 03, 07, 18 and 24: rounding, overflow, and processes that no longer agree.

The noise of log-probabilities is measured where images are scored twice, in the batches in which
they are. A gradient that overflows float16 costs one update, and a run that went on skips the same
ones. Two processes compare all that they hold before a checkpoint is written."""
import json
import math
import os
import warnings

import numpy as np
import pytest
import torch
from forked import run_pair

from prdp_nb import algorithm, training, trajectories
from prdp_nb.algorithm import SKIPS, LossScaler, gradient_step
from prdp_nb.baselines import OBJECTIVES
from prdp_nb.commands import run_command
from prdp_nb.config import Config
from prdp_nb.processes import join_ranks, leave_ranks
from prdp_nb.runs import read_metrics, saved_checkpoints
from prdp_nb.training import Trainer, collect_and_update

pytestmark = pytest.mark.usefixtures("quick_pictures")

TINY = dict(
    epochs=2, prompts_per_epoch=3, images_per_prompt=2, num_inference_steps=2, updates_per_epoch=2,
    batch_size=4, learning_rate=1e-3, reward="colourfulness", eval_images_per_prompt=1,
    eval_rewards=(), save_every=1, reward_retries=0)


@pytest.fixture
def tiny(tiny_model, prompt_file, tmp_path):
    "Makes configurations of runs of seconds."
    given = TINY | dict(model=str(tiny_model), prompts=str(prompt_file))
    return lambda name="run", **fields: Config(**given | dict(output_dir=str(tmp_path/name))
                                               | fields)


def contrast(images, prompts):
    return [float(np.asarray(image).std()) for image in images]


# The noise of log-probabilities


def test_noise_stops_a_run_only_where_images_are_scored_twice_and_clipped(tiny, monkeypatch):
    measured = []
    monkeypatch.setattr(training, "noise_floor", lambda *given: measured.append(given) or 1.0)
    trainer = Trainer(tiny(updates_per_epoch=1), reward=contrast)
    collect_and_update(trainer, 0)
    rollout = trainer.collector.sample(trainer.collector.prompts, 0)
    def check(**fields):
        for name, value in fields.items(): setattr(trainer.config, name, value)
        training.check_noise(trainer, rollout, left_out=False)
    for name in OBJECTIVES:
        check(objective=name, updates_per_epoch=1)
        check(objective=name, updates_per_epoch=2, clip_range=math.inf)
        assert measured == [] and trainer.noise_floor is None
        if name not in ("rdp", "dpo"):
            with pytest.raises(ValueError, match="noise of log-probabilities, 1.0e.00, exceeds"):
                check(clip_range=1e-4)
            assert measured.pop()[1] is rollout
        trainer.noise_floor = None
    with pytest.raises(ValueError, match="exceeds clip_range"):
        check(objective="prdp", clip_range=1e-4)
    trainer.noise_floor = None
    with pytest.raises(ValueError, match="exceeds clip_range"): collect_and_update(trainer, 1)


def batches_of(monkeypatch):
    "The batches of trajectories that are scored from now on, in order."
    found, score = [], trajectories.score_trajectories
    def watched(policy, latents, condition):
        found.append(latents)
        return score(policy, latents, condition)
    monkeypatch.setattr(trajectories, "score_trajectories", watched)
    return found


def same_batches(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("online", [True, False])
def test_what_is_measured_are_the_very_batches_that_are_scored_again(online, tiny, monkeypatch):
    trainer = Trainer(tiny(online=online), reward=contrast)
    found, first = batches_of(monkeypatch), 0 if online else 2 # offline π_old is scored first
    collect_and_update(trainer, 0)
    assert [len(batch) for batch in found[first:]] == [4, 2, 4, 2] # noise, second update
    assert same_batches(found[first:first + 2], found[first + 2:])
    assert trainer.noise_floor == 0
    found.clear()
    collect_and_update(trainer, 1)
    assert len(found) == 2 + 2 # once is enough: the reference or π_old, then the second update


def batch_dependent(module, given, output):
    "As a GPU whose kernels depend on the number of images."
    return (output[0] + 1e-3*len(given[0]),)


def refuses(prompt):
    "A reward that fails on that prompt, but only in an epoch."
    def picky(images, prompts):
        if picky.on and prompt in prompts: raise ValueError("not today")
        return contrast(images, prompts)
    picky.on = False
    return picky


def test_where_prompts_are_left_out_old_log_probs_are_of_the_batches_that_are_left(
        tiny, monkeypatch):
    config = tiny(on_reward_error="skip_prompt", learning_rate=1e-30, clip_range=1e-7)
    reward = refuses("a painting of a duck")
    trainer = Trainer(config, reward=reward)
    trainer.learner.pipe.unet.register_forward_hook(batch_dependent)
    reward.on, found = True, batches_of(monkeypatch)
    order = algorithm.draw_prompts(trainer.collector.prompts, 3, 0, 0)
    assert order[-1] != "a painting of a duck" # so the last one changes its batch
    with pytest.warns(UserWarning, match="duck' is left out"):
        row, _ = collect_and_update(trainer, 0)
    assert [len(batch) for batch in found] == [4]*3 # anew, noise, second update
    assert same_batches(found[:1], found[1:2]) and same_batches(found[:1], found[2:])
    assert trainer.noise_floor == 0 and row["clip_fraction"] == 0 # nothing has moved


# Overflow in float16


def narrow(trainer, room):
    """A network whose format has less room: what goes back into it becomes inf where it is larger
    than `room(number of the optimizer's steps before)`. Returns the list of all norms."""
    step, norms = algorithm.gradient_step, []
    def counted(*given):
        norms.append(step(*given))
        return norms[-1]
    def overflow(gradient):
        return gradient.where(gradient.abs().max() <= room(len(norms)), math.inf)
    def hook(module, given, output):
        if output[0].requires_grad: output[0].register_hook(overflow)
    trainer.learner.pipe.unet.register_forward_hook(hook)
    return counted, norms


def start_at(trainer, scale):
    "A loss scale at which nothing overflows by itself."
    scaler = trainer.learner.scaler
    scaler.load_state_dict(scaler.state_dict() | dict(scale=scale))


def copies(trainer): return [p.detach().clone() for p in trainer.learner.weights]


def half(tiny, name="run", **fields):
    config = tiny(name, dtype="float16", ema_decay=0.5, clip_range=0.1, **fields)
    return Trainer(config, reward=contrast)


def test_a_gradient_that_overflows_costs_one_update_and_halves_the_scale(tiny, monkeypatch):
    trainer, seen = half(tiny, updates_per_epoch=3), []
    start_at(trainer, 2.0**-5)
    step, norms = narrow(trainer, lambda update: 0 if update == 1 else math.inf)
    def watched(*given):
        before = copies(trainer)
        norm = step(*given)
        moved = any((a != b).any() for a, b in zip(before, copies(trainer)))
        seen.append((math.isfinite(norm), moved, trainer.learner.scaler.get_scale()))
        return norm
    monkeypatch.setattr(algorithm, "gradient_step", watched)
    with pytest.warns(UserWarning, match="^epoch 1: 1 updates were skipped, for their gradients "
                                         "overflow float16; the loss scale is 0.015625 now$"):
        run = trainer.train()
    made, skipped = (True, True, 2.0**-6), (False, False, 2.0**-6)
    assert seen == [(True, True, 2.0**-5), skipped, made, made, made, made]
    assert read_metrics(run).grad_norm.tolist()[0] == math.inf
    assert 0 < read_metrics(run).grad_norm.tolist()[1] < math.inf
    state = torch.load(saved_checkpoints(run)[-1]/"training_state.pt", weights_only=True)
    assert {float(moments["step"]) for moments in state["optimizer"]["state"].values()} == {5.0}
    assert state["average"]["optimization_step"] == 5
    assert state["scaler"]["scale"] == 2.0**-6 and state["scaler"]["skipped"] == 0


ROOM = 0.5 # a gradient of this size goes through; the first ones here are up to 40 times as large


def test_a_smaller_scale_is_a_cure_and_changes_nothing_else(tiny, monkeypatch):
    "The first gradient that fits is the one of a format with more room."
    found = {}
    for room in (ROOM, math.inf):
        trainer = half(tiny, f"room {room}", updates_per_epoch=4)
        if room == math.inf: start_at(trainer, 2.0**-5)
        step, found[room] = narrow(trainer, lambda update: room)
        with monkeypatch.context() as patched, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patched.setattr(algorithm, "gradient_step", step)
            collect_and_update(trainer, 0)
    assert found[ROOM][:2] == [math.inf]*2 and found[ROOM][2] < math.inf
    np.testing.assert_allclose(found[ROOM][2], found[math.inf][0], rtol=0.02)


def test_ten_in_a_row_stop_the_run_with_a_line_and_the_weights_as_they_were(
        tiny, monkeypatch, capsys):
    trainer = Trainer(tiny(dtype="float16", epochs=9), reward=contrast)
    start, backward = copies(trainer), algorithm.backward_log_probs
    def infinite(policy, *given, **named):
        backward(policy, *given, **named)
        trainer.learner.weights[0].grad[0] = math.inf
    monkeypatch.setattr(algorithm, "backward_log_probs", infinite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_command("prdp_train", trainer.train) == 1
    said = capsys.readouterr()
    line = ("prdp_train: error: epoch 5: the gradient's norm is nan in 10 updates in a row; the "
            "weights were not touched. Lower learning_rate, raise kl_weight, or use dtype float32; "
            "it comes from the prompt")
    assert said.err.count("prdp_train: error") == 1 and line.replace("nan", "inf") in said.err
    assert all(torch.equal(a, b) for a, b in zip(start, copies(trainer)))
    assert trainer.learner.scaler.get_scale() == 2.0**-SKIPS and "after 4 of 9 epochs" in said.out


def final(run):
    state = torch.load(saved_checkpoints(run)[-1]/"training_state.pt", weights_only=True)
    moments = [value.tolist() for kept in state["optimizer"]["state"].values()
               for value in kept.values()]
    metrics = read_metrics(run).drop(columns="seconds").to_numpy().tolist()
    weights = [path.read_bytes() for path in sorted((run/"final").glob("**/*.safetensors"))]
    return dict(weights=weights, moments=moments, metrics=metrics, scaler=state["scaler"])


def test_a_run_with_skipped_updates_goes_on_to_the_same_bits(tiny, monkeypatch):
    "A run that forgot its scale, or how often it has skipped, would skip other updates."
    def trained(trainer):
        step, _ = narrow(trainer, lambda update: ROOM)
        with monkeypatch.context() as patched, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patched.setattr(algorithm, "gradient_step", step)
            return trainer.train()
    straight = trained(half(tiny, "straight", epochs=4))
    run = trained(half(tiny, "run", epochs=1))
    trained(Trainer.resume(run, contrast, epochs=4))
    ours, theirs = final(run), final(straight)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    norms = read_metrics(straight).grad_norm
    assert norms[0] == norms[1] == math.inf and norms.min() < math.inf


def test_updates_skipped_before_an_interruption_count(tiny, monkeypatch):
    trainer = half(tiny, epochs=4)
    step, _ = narrow(trainer, lambda update: 0)
    monkeypatch.setattr(algorithm, "gradient_step", step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer.train()
        monkeypatch.undo()
        later = Trainer.resume(run, contrast, epochs=9)
        step, _ = narrow(later, lambda update: 0)
        monkeypatch.setattr(algorithm, "gradient_step", step)
        with pytest.raises(FloatingPointError, match="^epoch 5: .* in 10 updates in a row"):
            later.train()


def test_a_run_goes_on_in_another_dtype(tiny):
    run = Trainer(tiny(dtype="float16", epochs=1), reward=contrast).train()
    Trainer.resume(run, contrast, dtype="float32", epochs=2).train()
    trainer = Trainer.resume(run, contrast, dtype="float16", epochs=3)
    trainer.train()
    assert read_metrics(run).epoch.tolist() == [1, 2, 3]


class OneWeight(torch.nn.Module):
    "What a policy is to `gradient_step`: a network with a dtype, and a schedule on a device."
    def __init__(self, dtype):
        super().__init__()
        self.compute_dtype, self.denoiser = dtype, torch.nn.Linear(1, 1, bias=False)
        self.schedule = type("Schedule", (), dict(std=torch.ones(3)))


def test_the_loss_scale_is_torch_s():
    "Against `torch.amp.GradScaler`, used as its documentation says."
    draw = torch.Generator().manual_seed(1)
    policy, reference = OneWeight(torch.float16), torch.nn.Linear(1, 1, bias=False)
    reference.load_state_dict(policy.denoiser.state_dict())
    theirs = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=4)
    ours = LossScaler(policy)
    ours.set_growth_interval(4)
    pairs = [(policy.denoiser, ours), (reference, theirs)]
    optimizers = [torch.optim.AdamW(net.parameters(), 0.1) for net, _ in pairs]
    scales = []
    for _ in range(90):
        slope = math.inf if torch.rand((), generator=draw) < 0.15 else 1.0
        for (net, scaler), optimizer in zip(pairs, optimizers):
            loss = slope*net(torch.ones(1, 1)).sum()
            if scaler is ours: (loss*scaler.get_scale()).backward()
            else: scaler.scale(loss).backward()
        gradient_step(policy, optimizers[0], 0.5, ours)
        theirs.unscale_(optimizers[1])
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        theirs.step(optimizers[1])
        theirs.update()
        optimizers[1].zero_grad()
        assert ours.get_scale() == theirs.get_scale()
        assert torch.equal(policy.denoiser.weight, reference.weight)
        scales.append(ours.get_scale())
    assert len(set(scales)) >= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_in_a_dtype_with_room_a_gradient_that_is_not_finite_is_an_error_at_once(dtype, value):
    policy = OneWeight(dtype)
    optimizer = torch.optim.AdamW(policy.denoiser.parameters())
    start = policy.denoiser.weight.detach().clone()
    policy.denoiser.weight.grad = torch.full((1, 1), value)
    with pytest.raises(FloatingPointError, match=f"norm is {value}; the weights were not touched"):
        gradient_step(policy, optimizer, 1.0)
    assert torch.equal(policy.denoiser.weight, start)
    assert LossScaler(policy).state_dict() == {}


def test_an_update_without_any_gradient_is_no_overflow():
    policy = OneWeight(torch.float16)
    optimizer, scaler = torch.optim.AdamW(policy.denoiser.parameters()), LossScaler(policy)
    assert gradient_step(policy, optimizer, 1.0, scaler) == 0 and scaler.get_scale() == 1


# Processes that no longer hold the same


def one_bit(tensor): tensor.view(torch.int32).view(-1)[0] ^= 1


SPOILS = {
    "": lambda learner: None,
    "objective": lambda learner: one_bit(learner.objective.values.value.layers[1].weight.data),
    "weights": lambda learner: one_bit(learner.weights[-1].data),
    "optimizer": lambda learner: one_bit(learner.optimizer.state[learner.weights[3]]["exp_avg"]),
}


def worker(folder, model, prompts):
    "What each of two processes does: a run for each of the parts that may differ in process 1."
    check, found = training.check_replicas, {}
    common = TINY | dict(model=str(model), prompts=str(prompts), objective="dpok", epochs=1)
    for part, spoil in SPOILS.items():
        config = Config(**common | dict(output_dir=str(folder/f"run_{part}")))
        trainer = Trainer(config, reward=contrast)
        def spoiled(learner):
            if learner.ranks.rank == 1: spoil(learner)
            check(learner)
        training.check_replicas = spoiled
        found[part] = run_command("prdp_train", trainer.train)
    (folder/f"{join_ranks().rank}.json").write_text(json.dumps(found))
    leave_ranks()


def test_two_processes_that_differ_in_one_bit_save_nothing_and_say_it(
        tmp_path, tiny_model, prompt_file):
    environment = os.environ | dict(OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    pair = run_pair(worker, tmp_path, tiny_model, prompt_file, environment=environment,
                    folder=tmp_path)
    for rank, done in enumerate(pair):
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads((tmp_path/f"{rank}.json").read_text())
        assert found == {part: int(bool(part)) for part in SPOILS}
    for part in SPOILS:
        line = (f"prdp_train: error: epoch 1: process 1 does not hold what process 0 holds: {part} "
                "differ; nothing was saved.")
        assert sum(done.stderr.count(line) for done in pair) == bool(part)
        assert len(saved_checkpoints(tmp_path/f"run_{part}")) == (not part)

