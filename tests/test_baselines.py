"Every objective as a run: the engine, the record and the folder are the same for all."
import numpy as np
import pytest
import torch

from prdp_nb.baselines import OBJECTIVES
from prdp_nb.config import Config
from prdp_nb.runs import read_metrics
from prdp_nb.training import Trainer

pytestmark = pytest.mark.usefixtures("quick_pictures")

SINGLE_IMAGE = ("ddpo", "ddpo_batch", "dpok") # compare no images of one prompt
UNCLIPPED = ("rdp", "dpo") # ignore clip_range

def contrast(images, prompts):
    return [float(np.asarray(image).std())/255 for image in images]


@pytest.fixture
def tiny(tiny_model, prompt_file, tmp_path):
    "Makes trainers for a run of seconds."
    setting = dict(model=str(tiny_model), output_dir=str(tmp_path/"run"), prompts=str(prompt_file), epochs=2, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
                   updates_per_epoch=2, learning_rate=1e-2, eval_images_per_prompt=1, eval_rewards=())
    return lambda **fields: Trainer(Config(**(setting | fields)), reward=contrast)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name, tiny):
    trainer = tiny(objective=name, images_per_prompt=1 if name in SINGLE_IMAGE else 2)
    before = [p.detach().clone() for p in trainer.learner.policy.denoiser.parameters() if p.requires_grad]
    metrics = read_metrics(trainer.train())
    after = [p for p in trainer.learner.policy.denoiser.parameters() if p.requires_grad]
    assert any((a != b).any() for a, b in zip(after, before)) and all(a.isfinite().all() for a in after)
    assert (metrics["grad_norm"] > 0).all() and metrics["kl"][0] == 0 and metrics["kl"][1] != 0
    assert ((0 < metrics["clip_fraction"]) & (metrics["clip_fraction"] <= 1)).all()
    assert metrics["reward_queries"].tolist() == ([2, 4] if name in SINGLE_IMAGE else [4, 8])


def test_the_memory_of_an_objective_lasts_a_run(tiny):
    trainer = tiny(objective="ddpo", prompts_per_epoch=3)
    trainer.train()
    assert {prompt: len(latest) for prompt, latest in trainer.learner.objective.state_dict().items()} == dict.fromkeys(trainer.collector.prompts, 4)


def test_offline_scores_the_pictures_of_the_reference(tiny, monkeypatch):
    trainer, seen = tiny(online=False), []
    base, sample = tiny(), trainer.collector.sample
    monkeypatch.setattr(trainer.collector, "sample", lambda prompts, epoch, *rest, **more: seen.append((prompts, epoch, sample(prompts, epoch, *rest, **more))) or seen[-1][2])
    metrics = read_metrics(trainer.train())
    _, (_, _, first), (prompts, epoch, second) = seen # the first are those of the check
    torch.testing.assert_close(second.latents, base.collector.sample(prompts, epoch).latents)
    assert torch.equal(first.log_probs, first.log_probs_ref) and not torch.equal(second.log_probs, second.log_probs_ref)
    assert metrics["kl"][0] == 0 and metrics["reward_queries"].tolist() == [4, 8] and (metrics["clip_fraction"] < 1).all()
    assert (trainer.config.method, trainer.config.load(trainer.folder/"config.yaml").online) == ("prdp_offline", False)
