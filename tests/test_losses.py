"The losses of chapter 08: every gradient by finite differences, at θ = old by REINFORCE, and DDPO's statistics over epochs by a transcription."
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prdp_nb.baselines import OBJECTIVES, PromptStatistics, ddpo_batch_loss, grpo_loss
from prdp_nb.gradients import coefficients
from prdp_nb.trajectories import Rollout

CONFIG = SimpleNamespace(clip_range=0.1, kl_weight=0.5, seed=0)
SHAPES = [(2, 6, 3), (3, 2, 4), (1, 5, 1)]


def draw(seed, *shape):
    "Log-probabilities under θ, old and ref of shape (N, B, T), and rewards (N, B)."
    noise = torch.Generator().manual_seed(seed)
    ref, by, further = (torch.randn(shape, generator=noise, dtype=torch.float64) for _ in range(3))
    return ref + 0.1*(by + further), ref + 0.1*by, ref, torch.rand(shape[:2], generator=noise, dtype=torch.float64)


def record(old, ref):
    condition = {"prompt": torch.randn(len(old), 8, generator=torch.Generator().manual_seed(1))}
    latents = torch.zeros(*old.shape[:2], old.shape[2] + 1, 1)
    return Rollout([f"prompt {n}" for n in range(len(old))], condition, None, torch.arange(old.shape[2]), latents, old, ref)


def central_differences(loss_fn, point, step=1e-6):
    gradient = torch.zeros_like(point)
    for place in np.ndindex(*point.shape):
        moved = torch.zeros_like(point)
        moved[place] = step
        gradient[place] = (loss_fn(point + moved).item() - loss_fn(point - moved).item())/(2*step)
    return gradient


@pytest.mark.parametrize("epochs", [1, 4]) # after four, DDPO goes by the prompts' own past
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_finite_differences(name, shape, epochs):
    now, old, ref, rewards = draw(SHAPES.index(shape), *shape)
    objective = OBJECTIVES[name](CONFIG)
    for _ in range(epochs): loss_fn = objective(record(old, ref), rewards)
    gradient = coefficients(loss_fn, now)[1]
    assert (gradient - central_differences(loss_fn, now)).abs().max() < 1e-6*gradient.abs().max()


@pytest.mark.parametrize("name", ["ddpo", "ddpo_batch", "grpo", "dpok"])
def test_at_old_the_gradient_is_reinforce_whatever_the_clip(name):
    _, old, _, rewards = draw(0, 3, 6, 5)
    r = rewards.numpy()
    batch, group = r - r.mean(), r - r.mean(1, keepdims=True)
    advantages = dict(ddpo=batch/(r.std() + 1e-6), ddpo_batch=batch/(r.std() + 1e-8), grpo=group/(r.std(1, keepdims=True) + 1e-6), dpok=batch)
    for clip_range in (1e-9, 0.1, np.inf):
        objective = OBJECTIVES[name](SimpleNamespace(clip_range=clip_range, kl_weight=0.5, seed=0))
        slopes = coefficients(objective(record(old, old), rewards), old)[1] # ref = old: DPOK's penalty is silent
        np.testing.assert_allclose(slopes.numpy(), np.repeat(-advantages[name][..., None]/old.numel(), 5, axis=2), atol=1e-9)


def advantages_by_hand(history, prompts, rewards):
    "DDPO's advantages of an epoch; `history` is a list of (prompt, reward) in order."
    history += [(p, r) for p, row in zip(prompts, rewards) for r in row]
    result = np.zeros_like(rewards)
    for n, prompt in enumerate(prompts):
        own = [r for p, r in history if p == prompt][-16:]
        among = np.array(own) if len(own) >= 16 else rewards
        result[n] = (rewards[n] - np.mean(among))/(np.std(among) + 1e-6)
    return result


@pytest.mark.parametrize("unit", [1.0, 1e-6]) # at the second the floor of the deviation counts
def test_statistics_of_prompts_that_come_and_go(unit):
    random, history, statistics, relied = np.random.default_rng(0), [], PromptStatistics(), []
    for epoch in range(8):
        numbers = random.choice(6, 4, replace=False)
        prompts = [f"prompt {i}" for i in numbers]
        rewards = unit*(random.normal(size=(4, 5)) + numbers[:, None])
        np.testing.assert_allclose(statistics(prompts, torch.from_numpy(rewards)).numpy(), advantages_by_hand(history, prompts, rewards), rtol=1e-6, atol=1e-9)
        relied.append(sum(map(statistics.knows, prompts)))
        if epoch == 4:
            saved, statistics = statistics.state_dict(), PromptStatistics()
            statistics.load_state_dict(saved)
    assert (relied[0], relied[-1]) == (0, 4)


def test_prompts_that_are_rows_of_numbers_are_told_apart():
    statistics, prompts = PromptStatistics(size=2), torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    statistics(list(prompts), torch.tensor([[0.1, 0.2], [0.8, 0.9]]))
    assert statistics.knows(torch.tensor([1.0, 3.0])) and not statistics.knows(torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize("loss", [ddpo_batch_loss, grpo_loss])
def test_equal_rewards_teach_nothing(loss):
    now, old, _, _ = draw(0, 3, 6, 5)
    loss, slopes = coefficients(lambda x: loss(x, old, torch.full((3, 6), 0.3), clip_range=0.1), now)
    assert loss.abs() < 1e-6 and slopes.abs().max() < 1e-6
