"""Guards 13_models: what is shown, measured and evaluated is what is trained, and an image is one.

Noise schedules on which the stock sampler paints black or takes other steps than those it visits,
half precision, networks that overflow, and prompts that only the pipeline's own encoder reads."""
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from prdp_nb.commands import train_command
from prdp_nb.comparison import evaluate, read_table
from prdp_nb.config import Config
from prdp_nb.evaluation import sample_prompts
from prdp_nb.finetuning import load_finetuned, make_policy
from prdp_nb.loading import quiet_loading
from prdp_nb.models import decode_latents, encode_prompts, generate, load_pipeline
from prdp_nb.runs import load_checkpoint
from prdp_nb.training import Trainer
from prdp_nb.trajectories import sample_rollout
from tiny_sd import tiny_pipeline

pytestmark = pytest.mark.usefixtures("quick_pictures")

PROMPTS = ["a painting of a fox", "a painting of a duck"]
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction",
                timestep_spacing="trailing")


def saved(folder, **scheduler) -> str: # a tiny pipeline with another noise schedule
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **scheduler)
    with quiet_loading(): pipe.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory): return saved(tmp_path_factory.mktemp("models")/"plain")


def settings(folder, model, **changes) -> Config:
    options = dict(epochs=1, prompts_per_epoch=2, images_per_prompt=2, num_inference_steps=2,
                   learning_rate=1e-3, reward="colourfulness", eval_images_per_prompt=1,
                   eval_rewards=(), lora_rank=2)
    prompts = folder/"prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    return Config(model=model, prompts=str(prompts), output_dir=str(folder/"run"), **options | changes)


def difference(one: list, two: list) -> int: # of images, in levels of 255
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())
               for a, b in zip(one, two, strict=True))


def of_training(pipe, policy, seeds) -> list: # the images that training would score
    with torch.no_grad():
        rollout = sample_rollout(policy, PROMPTS, encode_prompts(pipe, PROMPTS),
                                 torch.tensor(seeds).view(2, 1), with_reference=False)
    return decode_latents(pipe, rollout.latents[:, 0, -1])


# One sampler


def test_a_schedule_that_ends_in_pure_noise_is_shown_as_it_is_trained(tmp_path):
    model = saved(tmp_path/"model", **ZERO_SNR)
    run = Trainer(settings(tmp_path, model, num_inference_steps=25, guidance_scale=1.0,
                           prompts_per_epoch=1)).train()
    table = read_table(run/"evaluation.csv")
    assert (table.base > 1).all() and (table.tuned > 1).all() # black images have colourfulness 0


@pytest.mark.parametrize("change, steps", [
    (ZERO_SNR, 25), (ZERO_SNR, 50), (dict(timestep_spacing="trailing"), 7), (dict(timestep_spacing="trailing"), 30),
    (dict(prediction_type="v_prediction"), 6)])
def test_what_is_shown_is_decoded_from_the_trajectories_of_training(tmp_path, change, steps):
    model, seeds = saved(tmp_path/"model", **change), [3, 2**32 - 1]
    pipe = load_pipeline(model)
    policy = make_policy(pipe, steps, 3.0)
    assert difference(generate(pipe, PROMPTS, seeds, steps, 3.0),
                      of_training(pipe, policy, seeds)) == 0


@pytest.mark.parametrize("adapter, dtype", [("lora", "bfloat16"), ("lora", "float16"),
                                            ("full", "bfloat16"), ("full", "float16")])
def test_half_precision_is_evaluated_as_it_is_trained(plain, tmp_path, adapter, dtype):
    config = settings(tmp_path, plain, adapter=adapter, dtype=dtype, learning_rate=1e-2)
    trainer = Trainer(config)
    run = trainer.train()
    learner, seeds = trainer.learner, [0, 1000] # those of an evaluation
    trained = of_training(learner.pipe, learner.policy, seeds)
    shown = evaluate(learner.pipe, PROMPTS, {}, config, 1).images
    _, again = load_checkpoint(run)
    later = sample_prompts(config, again, PROMPTS)
    assert difference(shown, trained) == 0 and difference(later, trained) == 0
    plain_dtype = load_finetuned(run/"final", plain)
    plainly = generate(plain_dtype, PROMPTS, seeds, 2, config.guidance_scale)
    assert difference(trained, plainly) > 0 # the dtype is seen in the images


# Images that are none


def overflowing(vae): # in float16 its activations are beyond 65,504
    def overflow(module, given, output): return output*1e6
    vae.decoder.conv_in.register_forward_hook(overflow)


def test_a_vae_that_overflows_ends_a_run_in_one_line(plain, tmp_path, monkeypatch, capsys):
    from prdp_nb import learner
    def broken(*given, **named):
        pipe = load_pipeline(*given, **named)
        overflowing(pipe.vae)
        return pipe
    monkeypatch.setattr(learner, "load_pipeline", broken)
    config = settings(tmp_path, plain, dtype="float16")
    config.save(tmp_path/"config.yaml")
    assert train_command(["--config", str(tmp_path/"config.yaml")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("prdp_train: error: ") and "Traceback" not in "".join(lines)
    assert "images are not finite, with the VAE in float16" in lines[-1]


@pytest.mark.parametrize("shade", [-3.0, 0.2, 3.0])
def test_a_batch_of_one_colour_names_the_parts_and_their_dtypes(plain, shade):
    pipe = load_pipeline(plain, torch.bfloat16)
    pipe.vae.decoder.conv_out.register_forward_hook(lambda *given: torch.full_like(given[2], shade))
    says = "all 2 images of a batch are of one colour, with the network in bfloat16 and the VAE in"
    with pytest.raises(FloatingPointError, match=says): generate(pipe, PROMPTS, [1, 2], 2, 1.0)


def test_a_batch_of_one_colour_need_not_be_grey(plain):
    pipe = load_pipeline(plain)
    orange = torch.tensor([1.0, 0.3, -1.0]).view(1, 3, 1, 1)
    pipe.vae.decoder.conv_out.register_forward_hook(lambda *given: orange.expand_as(given[2]))
    with pytest.raises(FloatingPointError, match="are of one colour"): generate(pipe, PROMPTS, [1, 2], 2, 1.0)


def test_one_image_of_one_colour_among_others_is_an_image(plain):
    pipe = load_pipeline(plain)
    def first_is_white(module, given, output): return torch.cat([torch.ones_like(output[:1]), output[1:]])
    pipe.vae.decoder.conv_out.register_forward_hook(first_is_white)
    white, other = generate(pipe, PROMPTS, [1, 2], 2, 1.0)
    assert white.getextrema() == ((255, 255),)*3 != other.getextrema()


# Prompts


def test_a_word_of_several_vectors_is_trained_on_as_the_pipeline_reads_it(plain, tmp_path):
    pipe = load_pipeline(plain)
    torch.manual_seed(0)
    pipe.load_textual_inversion(torch.randn(3, 32), token="<mine>")
    policy = make_policy(pipe, 2, 3.0)
    prompts = ["a photo of <mine>"]*2
    with torch.no_grad():
        rollout = sample_rollout(policy, prompts, encode_prompts(pipe, prompts),
                                 torch.tensor([[1], [2]]), with_reference=False)
    trained = decode_latents(pipe, rollout.latents[:, 0, -1])
    def stock(prompt: str) -> list:
        return [pipe(prompt, num_inference_steps=2, guidance_scale=3.0, eta=1.0,
                     generator=torch.Generator().manual_seed(seed)).images[0] for seed in (1, 2)]
    assert difference(trained, stock(prompts[0])) <= 1
    assert difference(trained, stock("a photo of")) > 1


def test_an_encoder_that_asks_for_an_attention_mask_gets_one(plain):
    pipe = load_pipeline(plain)
    without = encode_prompts(pipe, PROMPTS)["encoder_hidden_states"]
    pipe.text_encoder.config.use_attention_mask = True
    with_mask = encode_prompts(pipe, PROMPTS)["encoder_hidden_states"]
    ids = pipe.tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        oracle = pipe.text_encoder(ids.input_ids, attention_mask=ids.attention_mask)[0]
    assert torch.equal(with_mask, oracle) and (with_mask - without).abs().max() > 1e-3
