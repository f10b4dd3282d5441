"Rewards by name: what a text means, and that nothing heavy is imported for it."
import json, subprocess, sys
from pathlib import Path
import numpy as np
import pytest, torch
from safetensors.torch import load_file
from prdp_nb.prompts import load_prompts
from prdp_nb.rewards import REWARDS, SERVICE, Reward, WeightedSum, load_reward, parse_reward
from prdp_nb.config import Config
from prdp_nb.training import Trainer

pytestmark = pytest.mark.usefixtures("quick_pictures")

ROOT = Path(__file__).resolve().parents[1]
SUM = "10*pickscore + 2*hpsv2 + 0.05*aesthetic"

def test_the_paper_s_sum_as_text():
    assert parse_reward(SUM) == [(10, "pickscore"), (2, "hpsv2"), (0.05, "aesthetic")]
    assert Config.preset("paper_large_multi").reward == SUM
    assert str(load_reward(SUM)) == "10*PickScore + 2*HPSv2 + 0.05*Aesthetic"

@pytest.mark.parametrize("name", REWARDS)
def test_every_name_leads_to_a_reward(name):
    assert isinstance(load_reward(name), Reward)
    twice = load_reward(f"2*{name}")
    assert isinstance(twice, WeightedSum) and [weight for weight, _ in twice.terms()] == [2]

def test_a_url_leads_to_the_service():
    reward = load_reward("http://127.0.0.1:8000/score")
    assert isinstance(reward, Reward) and type(reward).__name__ == SERVICE.partition(":")[2]

def test_nothing_heavy_is_imported_before_a_score_is_asked_for():
    code = """if True:
        import json, sys, prdp_nb.rewards as r
        names = "10*pickscore + 2*hpsv2 + 0.05*aesthetic + clip_score + hpsv2_1 + image_reward"
        reward = r.load_reward(names)
        heavy = ("open_clip", "transformers", "huggingface_hub", "torchvision", "ImageReward")
        print(json.dumps([str(reward), [m for m in heavy if m in sys.modules]]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    expected = ("10*PickScore + 2*HPSv2 + 0.05*Aesthetic + 1*CLIPScore + 1*HPSv2.1 "
                "+ 1*ImageReward")
    assert json.loads(done.stdout) == [expected, []]

def test_an_offset_of_each_prompt_is_standard_normal_and_never_changes():
    prompts = load_prompts("emoji_train")[:20_000]
    found = np.array(load_reward("prompt_offset")([None]*len(prompts), prompts))
    assert abs(found.mean()) < 0.03 and abs(found.std() - 1) < 0.03
    assert abs(np.mean(found < -1) - 0.1587) < 0.01 and len({*found.tolist()}) == len(found)
    known = load_reward("prompt_offset")([None]*2, ["a painting of a fox", "fox"])
    assert known == pytest.approx([-0.087149131, -0.664655161])

def test_prdp_does_not_see_it_and_ddpo_does(tiny_model, prompt_file, tmp_path):
    def ends(objective, reward, name):
        run = Config(model=str(tiny_model), prompts=str(prompt_file), objective=objective,
                     reward=reward, epochs=2, prompts_per_epoch=3, images_per_prompt=2, kl_weight=0.1,
                     num_inference_steps=2, eval_rewards=("colourfulness",), eval_images_per_prompt=1,
                     output_dir=str(tmp_path/f"{objective}_{name}"))
        return load_file(Trainer(run).train()/"final/pytorch_lora_weights.safetensors")
    for objective, sees in dict(prdp=False, grpo=False, ddpo_batch=True).items():
        plain, offset = (ends(objective, reward, name) for name, reward in dict(
            plain="10*jpeg_incompressibility", offset="10*jpeg_incompressibility + prompt_offset").items())
        learnt = torch.cat([plain[key].flatten() for key in plain if ".up." in key]) # from 0
        other = torch.cat([offset[key].flatten() for key in plain if ".up." in key])
        apart = ((other - learnt).norm()/learnt.norm()).item()
        assert (apart > 0.1) == sees, (objective, apart)
