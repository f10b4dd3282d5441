"""Guards 60_your_own_objective, 61_your_own_reward and 63_your_own_schedule: a reader's empty cell
and wrong answers are told apart from right ones, and the solution trains."""
import json, re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch
import matplotlib
import pytest
from prdp_nb.baselines import OBJECTIVES

NBS = Path(__file__).resolve().parents[1]/"nbs"

class Exercise:
    "A notebook whose cells run in one namespace, with any answer in place of the reader's."
    def __init__(self, name: str, function: str):
        cells = json.loads((NBS/name).read_text(encoding="utf-8"))["cells"]
        self.cells = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        code = [source for kind, source in self.cells
                if kind == "code" and not source.startswith("#| hide")]
        checks = re.compile(rf"^right = check_\w+\({function}\)$", re.M)
        check = next(i for i, source in enumerate(code) if checks.search(source))
        self.function, self.names = function, {}
        self.empty, self.check = code[check - 1:check + 1]
        self.before, self.after = code[:check - 1], code[check + 1:]
        self.run(*self.before)

    @property
    def solution(self) -> str: # folded, in Markdown
        folded = r"<details><summary>A solution</summary>\n\n```python\n(.*?)```\n\n</details>"
        answers = [re.search(folded, text, re.S) for kind, text in self.cells if kind == "markdown"]
        found, = filter(None, answers)
        return found[1]

    def run(self, *sources: str) -> str: # what they print
        printed = StringIO()
        with redirect_stdout(printed):
            for source in sources: exec(compile(source, self.function, "exec"), self.names)
        return printed.getvalue()

    def verdict(self, answer: str) -> tuple[bool, str]: # is it right? and what the reader is told
        told = self.run(answer, self.check)
        return self.names["right"], told

@pytest.fixture(scope="module", autouse=True)
def no_windows(): matplotlib.use("agg")

# What is changed in the solution, and what the reader is told.
PAIRS = "pair_mean(error**2, reward)"
BETTER = "(differences(reward) > 0)"
RING = "np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])"
WRONG = dict(
    ipo_loss=[
        ("return pair_mean", "pair_mean", "it returned nothing"),
        (PAIRS, "(error**2)", "a loss is a tensor with one number in it"),
        ("1/(2*kl_weight)", "1/kl_weight", "the loss is 1, not 4"),
        (".mean(-1))", ".sum(-1))", "is it the mean over the steps?"),
        ("(now - ref)", "(ref - now)", "the loss is 0, not 4"),
        ("(now - ref)", "now", "π_ref says the same"),
        (PAIRS, f"error[{BETTER}].square().nanmean()", "a tie has no better image"),
        (PAIRS, f"error[{BETTER}].square().sum()/{BETTER}.sum().clamp(min=1)",
         "3 prompts with 5 images"),
        ("1/(2*kl_weight)", "differences(reward)/(2*kl_weight)", "3 prompts with 5 images"),
        ("(now - ref)", "(now.detach() - ref + 0*now)", "gradient and slope differ"),
        (".to(log_probs)", "", "dtype of log_probs"),
        ("check_groups(", "dict(rewards=", "refuse them with check_groups"),
        ("check_positive(kl_weight=kl_weight)", "kl_weight = kl_weight or 1",
         "refuse them with check_positive")],
    background=[
        ("return scores", "return scores[:1]", "returned 1 scores for 2 images"),
        ("-np.abs", "np.abs", "each channel 51 of 255 away"),
        ("/255\n        ring", "\n        ring", "an image all in that teal"),
        ("np.abs(ring - wanted).mean()", "np.abs((ring - wanted).mean(0)).mean()",
         "one half 51 below"),
        (RING, "pixels", "only the outermost ring counts"),
        (RING, "pixels[0]", "only the top row 51 away"),
        (RING, "np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])",
         "only the top row 51 away"),
        ("COLOURS.get(parse_prompt(prompt).background, PAPER)", "COLOURS['teal']",
         "a prompt without a colour"),
        ("parse_prompt(prompt).background", "parse_prompt(prompts[0]).background",
         "must not depend on the others")],
    fresh_tables=[
        ("return Schedule", "Schedule", "it returned nothing"),
        ("return Schedule(timesteps, a, b, s)", "return timesteps, a, b, s", "not a tuple"),
        ("return Schedule(timesteps, a, b, s)", "return Schedule(timesteps, a, b, share)",
         "s is to be a tensor"),
        ("(timesteps, a, b, s)", "(timesteps[:-1], a, b, s)", "there are 10 steps"),
        ("(timesteps, a, b, s)", "(timesteps, a, b.float(), s)", "b is torch.float32"),
        ("(timesteps, a, b, s)", "(timesteps.flip(0), a, b, s)", "passed on as they are"),
        ("1 - after).sqrt()", "after - 1).sqrt()", "b is not finite"),
        ("share*next_noise", "share*noise", "s is 0.3000, not 0.4000"),
        ("s = share*next_noise", "s = share*next_noise**2", "s is 0.3000, not 0.1800"),
        ("next_noise = after.sqrt(), (1 - after).sqrt()", "next_noise = after, (1 - after)",
         "s is 0.3000, not 0.1800"),
        ("next_signal/signal\n", "signal/next_signal\n", "a is 1.3333, not 0.7500"),
        ("a = next_signal/signal", "a = next_signal", "x counts in x̂_0 alone"),
        ("(next_noise**2 - s**2).sqrt()", "next_noise", "f counts twice"),
        ("(next_noise**2 - s**2).sqrt()", "next_noise - s", "f counts twice"),
        ("kept - next_signal*noise/signal", "-next_signal*noise/signal", "f counts twice"),
        ("kept - next_signal*noise/signal", "kept + next_signal*noise/signal", "f counts twice"),
        ("s = share*next_noise", "s = 0.5*next_noise", "with a share of 0.0"),
        ("(timesteps, a, b, s)", "(timesteps, a, b, s.roll(1))", "variance σ'²"),
        ("now.sqrt()", "now.sqrt_()", "changed in place"),
        ("if not 0 <= share <= 1: raise ValueError", "ValueError", "of -0.1 makes no sense"),
        ("if not 0 <= share <= 1", "if share < 0 or share > 1", "of nan makes no sense")])

NOTEBOOKS = dict(ipo_loss="60_your_own_objective.ipynb", background="61_your_own_reward.ipynb",
                 fresh_tables="63_your_own_schedule.ipynb")

@pytest.fixture(scope="module", params=WRONG)
def exercise(request):
    with patch.dict(OBJECTIVES): yield Exercise(NOTEBOOKS[request.param], request.param)

def test_the_empty_cell_is_told_what_it_lacks(exercise):
    passed, told = exercise.verdict(exercise.empty)
    assert not passed and "not yet:" in told
    assert "it returned nothing" in told or "background returned None" in told

def test_wrong_answers_are_told_what_is_wrong(exercise):
    for old, new, expected in WRONG[exercise.function]:
        assert exercise.solution.count(old) == 1, old
        passed, told = exercise.verdict(exercise.solution.replace(old, new))
        assert not passed and expected in told.partition("not yet: ")[2], f"{old} -> {new}: {told}"

def test_the_solution_passes_and_trains(exercise):
    passed, told = exercise.verdict(exercise.solution)
    assert passed and told.endswith("All is right.\n")
    exercise.run(*exercise.after)
    assert exercise.names["mine"] is exercise.names[exercise.function]
