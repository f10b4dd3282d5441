"""Guards 12: EmojiTruth against images drawn one by one with Pillow, and its ends.

The oracle draws a prompt many times until every placement has been seen, puts each on the colour of
the image's border, and takes the smallest distance in plain float64."""
import functools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from prdp_nb import figures
from prdp_nb.config import Config
from prdp_nb.emoji import (
    COLOURS, IMAGE_SIZE, LEAST_CONTRAST, PAPER, EmojiTruth, allowed_layers, parse_prompt, placements,
    render, sprites)
from prdp_nb.rewards import REWARDS, load_reward
from prdp_nb.training import Trainer

PROMPTS = ["fox", "a painting of a small whale", "a painting of a cat on a red background",
           "a painting of a large dog and a small bee", "a pixel art of a fox and a duck",
           "a pixel art of a small goose and a large pig on a pink background"]


def drawn(placed, style, colour):
    image = Image.new("RGBA", (IMAGE_SIZE,)*2, tuple(int(c) for c in colour))
    for animal, size, x, y in placed: image.alpha_composite(sprites(size)[animal], (x, y))
    x = np.asarray(image.convert("RGB"), np.float64)
    if style != "pixel art": return x
    return x.reshape(16, 4, 16, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)


@functools.cache
def every_placement(scene):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(1500): seen.add(tuple(placements(scene, rng)))
    return seen


def truth_by_hand(image, prompt):
    scene, x = parse_prompt(prompt), np.asarray(image, np.float64)
    ring = np.array([x[i, j] for i in range(64) for j in range(64) if {i, j} & {0, 63}])
    asked = np.array(COLOURS.get(scene.background, PAPER))
    colour = np.clip(np.median(ring, axis=0), asked - 6, asked + 6)
    best = -1.0
    for placed in every_placement(scene):
        y = drawn(placed, scene.style, colour)
        contrast = max(((y - colour)**2).mean(), LEAST_CONTRAST)
        best = max(best, 1 - ((x - y)**2).mean()/contrast)
    return best


def images_of(prompt):
    rng = np.random.default_rng(1)
    image = render(parse_prompt(prompt), rng)
    noise = np.asarray(image, float) + 40*rng.standard_normal((64, 64, 3))
    lighter = np.asarray(image) + 20.0 # on a background that no prompt allows
    return [image, Image.fromarray(lighter.clip(0, 255).astype(np.uint8)),
            image.filter(ImageFilter.GaussianBlur(2)), image.transpose(Image.ROTATE_90),
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)), Image.new("RGB", (64, 64), "black")]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_truth_is_the_distance_to_the_nearest_of_all_allowed_images(prompt):
    images = images_of(prompt)
    expected = [truth_by_hand(image, prompt) for image in images]
    assert EmojiTruth()(images, [prompt]*len(images)) == pytest.approx(expected, abs=2e-3)
    assert len(allowed_layers(parse_prompt(prompt))) == len(every_placement(parse_prompt(prompt)))


def test_the_nearest_image_is_one_that_the_prompt_allows():
    for prompt in PROMPTS:
        image = render(parse_prompt(prompt), np.random.default_rng(3))
        truth, nearest = EmojiTruth().nearest(image, prompt)
        assert truth > 0.999 and np.abs(nearest.astype(int) - np.asarray(image, int)).max() <= 3


def test_an_empty_canvas_has_none_and_a_wrong_colour_less():
    prompt = "a painting of a fox and a duck on a blue background"
    empty, other = Image.new("RGB", (64, 64), COLOURS["blue"]), Image.new("RGB", (64, 64), "red")
    assert EmojiTruth()([empty, other], [prompt]*2) == [0.0, -1.0]


def test_a_larger_image_counts_as_its_reduction():
    prompt = PROMPTS[3]
    image = render(parse_prompt(prompt), np.random.default_rng(3))
    large = image.resize((256, 256), Image.BICUBIC)
    assert EmojiTruth()([large], [prompt])[0] > 0.97


def test_it_has_a_name_and_knows_its_grammar():
    assert isinstance(load_reward("emoji_truth"), EmojiTruth) and "emoji_truth" in REWARDS
    with pytest.raises(ValueError, match="'a photo of a fox' is not a sentence of the emoji world"):
        EmojiTruth()([Image.new("RGB", (64, 64))], ["a photo of a fox"])


def test_a_run_shows_what_would_have_been_right(tiny_model, tmp_path, monkeypatch):
    drawn, prompts = [], ["a painting of a fox", "a pixel art of a duck and a small cow"]
    (tmp_path/"prompts.txt").write_text("\n".join(prompts))
    monkeypatch.setattr(figures, "draw_grid", lambda rows, *rest: drawn.append(rows))
    config = Config(model=str(tiny_model), prompts=str(tmp_path/"prompts.txt"), epochs=1,
                    prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
                    eval_images_per_prompt=1, eval_rewards=("colourfulness", "emoji_truth"),
                    output_dir=str(tmp_path/"run"))
    Trainer(config, reward="colourfulness").train()
    *models, right = drawn[-1]
    assert models == ["before", "after"]
    for image, found, prompt in zip(drawn[-1]["after"], drawn[-1][right], prompts, strict=True):
        truth, nearest = EmojiTruth().nearest(image, prompt)
        assert image.size == (16, 16) and np.array_equal(found, nearest) and truth < 0.5
        assert EmojiTruth()([found], [prompt]) > [0.99]
