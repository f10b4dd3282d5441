"Rewards by name: what a text means, and that nothing heavy is imported for it."
import json, subprocess, sys
from pathlib import Path
import pytest
from prdp_nb.rewards import REWARDS, SERVICE, Reward, WeightedSum, load_reward, parse_reward
from prdp_nb.config import Config

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
