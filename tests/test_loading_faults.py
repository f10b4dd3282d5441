"""Guards 09_loading, 13_models and 18_finetuning: a model is loaded whole, or not at all.

Every way found so far in which a saved model, a name of one, or a LoRA is wrong: each is one line of
`prdp_train` that says what to do."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from prdp_nb.commands import sample_command, train_command
from prdp_nb.config import Config
from prdp_nb.families import tiny_pipeline
from prdp_nb.finetuning import LORA_FILE, adapter_weights, load_finetuned, make_policy, save_finetuned
from prdp_nb.loading import quiet_loading
from prdp_nb.models import generate, image_size, load_pipeline, sampling_policy
from prdp_nb.policies import trainable_parameters
import tiny_sd
from tiny_sd import write_tiny_pipeline

NETWORKS = ("text_encoder", "unet", "vae")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory): return write_tiny_pipeline(tmp_path_factory.mktemp("models")/"model")


@pytest.fixture
def copy(model, tmp_path): return shutil.copytree(model, tmp_path/"copy")


def said_of(model, tmp_path, capsys) -> str: # the one line that `prdp_train` says of a model
    config = Config(model=str(model), prompts="animals", reward="colourfulness", eval_rewards=(),
                    output_dir=str(tmp_path/"run"))
    config.save(tmp_path/"config.yaml")
    capsys.readouterr()
    assert train_command(["--config", str(tmp_path/"config.yaml")]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    line = printed.strip().splitlines()[-1]
    assert line.startswith("prdp_train: error: ") and not (tmp_path/"run").exists()
    return line


def rewrite(folder, part: str, change): # the weights of a part
    file, = (folder/part).glob("*.safetensors")
    save_file(change(load_file(file)), file, {"format": "pt"})


def without_a_layer(weights): # all of the first layer's
    first = next(name for name in weights if ".0." in name).split(".0.")[0]
    return {name: value for name, value in weights.items() if not name.startswith(f"{first}.0.")}

def with_prefix(prefix): return lambda weights: {prefix + name: v for name, v in weights.items()}
def with_one_more(weights): return weights | {"surplus": torch.zeros(3)}
def another_shape(weights):
    name = next(name for name in weights if name.endswith(".bias"))
    return weights | {name: torch.zeros(weights[name].numel() + 1)}

CHANGES = {"missing": without_a_layer, "module.": with_prefix("module."),
           "base_model.": with_prefix("base_model.model."), "surplus": with_one_more,
           "do not fit its config.json": another_shape}


@pytest.mark.parametrize("says", CHANGES)
@pytest.mark.parametrize("part", NETWORKS)
def test_weights_that_are_not_those_of_the_network(copy, tmp_path, capsys, part, says):
    rewrite(copy, part, CHANGES[says])
    line = said_of(copy, tmp_path, capsys)
    assert part in line and says in line


@pytest.mark.parametrize("part", NETWORKS)
@pytest.mark.parametrize("says", ["git lfs pull", "is torn"])
def test_weights_that_are_no_weights(copy, tmp_path, capsys, part, says):
    file, = (copy/part).glob("*.safetensors")
    file.write_bytes(POINTER if says == "git lfs pull" else file.read_bytes()[:-100])
    line = said_of(copy, tmp_path, capsys)
    assert str(file) in line and says in line


def test_weights_as_pickle_are_not_read(copy, tmp_path, capsys):
    file, = (copy/"unet").glob("*.safetensors")
    torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()
    assert "safetensors" in said_of(copy, tmp_path, capsys)


@pytest.mark.parametrize("kind", ["fp16", "ema"])
def test_a_variant_alone_is_offered_and_loads_when_asked_for(copy, tmp_path, capsys, kind):
    for file in copy.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.{kind}.safetensors"))
    assert f"give the model as '{copy}@{kind}'" in said_of(copy, tmp_path, capsys)
    loaded = load_pipeline(f"{copy}@{kind}")
    assert type(loaded).__name__ == "StableDiffusionPipeline"


@pytest.mark.parametrize("name, says", [
    ("model.safetensors", "from_single_file(file).save_pretrained(folder)"),
    ("model.ckpt", "is a file, expected a folder"),
    ("./no_such_folder", "there is no folder"), ("/no/such/folder", "there is no folder"),
    ("~/models/sd", "there is no folder"),
    ("https://huggingface.co/CompVis/stable-diffusion-v1-4", "give a repository of the hub as owner"),
    ("sd-v1-4-finetuned", "There is no folder of that name here, and a name on the hub is owner/name"),
    ("emojii", "the nearest is 'emoji'"), ("emoji@", "the nearest is"), ("", "unknown model")])
def test_names_that_are_no_models(tmp_path, capsys, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    for file in ("model.safetensors", "model.ckpt"): (tmp_path/file).touch()
    if name == "emoji@": name = "emojy@fp16"
    assert says in said_of(name, tmp_path, capsys)


def as_variant(file, kind): file.rename(file.with_name(file.name.replace("model", f"model.{kind}", 1)))

def test_one_part_as_a_variant_is_named(copy, tmp_path, capsys):
    file, = (copy/"unet").glob("*.safetensors")
    as_variant(file, "fp16")
    assert "have weights of different variants (text_encoder none, unet .fp16, vae none)" in said_of(copy, tmp_path, capsys)


def test_a_variant_that_is_not_there_is_said(copy, tmp_path, capsys):
    assert f"holds its weights without a variant only: give the model as '{copy}'" in said_of(f"{copy}@fp16", tmp_path, capsys)


def test_a_variant_in_several_files_is_offered(copy, tmp_path, capsys):
    for file in copy.rglob("*.safetensors"): file.rename(file.with_name(f"{file.stem}.fp16-00001-of-00002.safetensors"))
    assert f"give the model as '{copy}@fp16'" in said_of(copy, tmp_path, capsys)


def test_files_beside_those_of_the_pipeline_are_nobodys_business(copy):
    (copy/"v1-5-pruned.ckpt").write_bytes(POINTER)
    (copy/"examples.json").write_text("[]")
    (copy/"safety_checker").mkdir()
    (copy/"safety_checker/model.safetensors").write_bytes(POINTER)
    for part in NETWORKS:
        file, = (copy/part).glob("*.safetensors")
        as_variant(file, "fp16")
    load_pipeline(f"{copy}@fp16")


def test_a_variant_of_the_hub_is_offered_and_loads_when_asked_for(copy, tmp_path):
    import subprocess, sys
    from hub import files_of, hub_on_this_machine
    for part in NETWORKS:
        file, = (copy/part).glob("*.safetensors")
        as_variant(file, "fp16")
    code = ("import sys; from prdp_nb.models import load_pipeline\n"
            "for name in sys.argv[1:]:\n"
            "    try: print(type(load_pipeline(name)).__name__)\n"
            "    except ValueError as error: print(error)\n")
    with hub_on_this_machine({"someone/model": files_of(copy)}, tmp_path/"home") as environment:
        done = subprocess.run([sys.executable, "-c", code, "someone/model", "someone/model@fp16"], env=environment,
                              capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert "give the model as 'someone/model@fp16'" in first and second == "StableDiffusionPipeline", done.stdout + done.stderr


def with_unet(folder, **fields): # a model whose UNet has other settings
    with quiet_loading():
        pipe = tiny_sd.tiny_pipeline()
        pipe.unet = tiny_sd.unet(**fields)
        pipe.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fields, says", [
    (dict(cross_attention_dim=64), "reads words of width 64, and the text encoders make 32"),
    (dict(time_cond_proj_dim=8), "was distilled to be told its guidance")])
def test_a_network_that_was_made_for_other_inputs_is_refused(fields, says, tmp_path, capsys):
    assert says in said_of(with_unet(tmp_path/"model", **fields), tmp_path, capsys)


def test_a_word_that_only_the_tokenizer_knows_is_said(copy, tmp_path, capsys):
    with quiet_loading():
        pipe = load_pipeline(str(copy))
        pipe.tokenizer.add_tokens(["<mine>"])
        pipe.tokenizer.save_pretrained(copy/"tokenizer")
    assert "was a word added to one of them alone?" in said_of(copy, tmp_path, capsys)


def edited(file, change): # a JSON file
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("entry, says", [
    (dict(_class_name=None), "is a None; supported are StableDiffusionPipeline"),
    (dict(_class_name="StableDiffusionInpaintPipeline"), "is a StableDiffusionInpaintPipeline"),
    (dict(unet=["my_package", "MyUNet"]), "no other code is run"),
    (dict(unet=["diffusers", "NoSuchNet"]), "cannot be loaded as a pipeline"),
    (dict(text_encoder=[None, None]), "comes without its text_encoder"),
    (dict(tokenizer=[None, None]), "comes without its tokenizer")])
def test_an_index_that_is_not_that_of_a_model(copy, tmp_path, capsys, entry, says):
    edited(copy/"model_index.json", lambda values: values.update(entry))
    assert says in said_of(copy, tmp_path, capsys)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "tokenizer/tokenizer.json",
                                  "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"])
def test_settings_that_are_torn(copy, tmp_path, capsys, file, content):
    (copy/file).write_text(content, encoding="utf-8")
    said_of(copy, tmp_path, capsys)


def test_an_inpainting_network_is_refused(copy, tmp_path, capsys):
    edited(copy/"unet/config.json", lambda values: values.update(in_channels=9))
    rewrite(copy, "unet", lambda weights: weights | {
        "conv_in.weight": torch.zeros(len(weights["conv_in.weight"]), 9, 3, 3)})
    assert "9 channels and the VAE makes 4" in said_of(copy, tmp_path, capsys)


def test_a_tokenizer_without_words_is_refused(copy, tmp_path, capsys):
    (copy/"tokenizer/tokenizer.json").unlink()
    assert "tokenizer" in said_of(copy, tmp_path, capsys)


def test_a_tokenizer_without_a_limit_gets_that_of_its_encoder(copy):
    edited(copy/"tokenizer/tokenizer_config.json", lambda values: values.pop("model_max_length", 0))
    assert load_pipeline(copy).tokenizer.model_max_length == 77


# LoRA


@pytest.fixture
def lora(model, tmp_path):
    pipe = load_pipeline(model)
    policy = make_policy(pipe, 2, 3.0, lora_rank=2)
    torch.manual_seed(0)
    for p in trainable_parameters(policy): p.data.normal_()
    return save_finetuned(pipe, policy, tmp_path/"lora")


def renamed(old, new): return lambda weights: {name.replace(old, new): v for name, v in weights.items()}
def lost(weights): return dict(list(weights.items())[1:])

@pytest.mark.parametrize("change", [
    renamed("unet.", "transformer."), renamed("unet.", "text_encoder."), renamed("to_q", "to_z"),
    renamed("unet.", "module.unet."), lost, lambda weights: {}, with_one_more,
    renamed(".to_q.", ".to_q.base_layer."), # as of a network whose LoRA was merged
    lambda weights: weights | {"unet.mid_block.to_q.base_layer.weight": torch.zeros(2, 2)}], ids=range(9))
def test_a_lora_of_which_not_everything_fits(lora, model, change):
    file = lora/LORA_FILE
    save_file(change(load_file(file)), file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"{LORA_FILE} in .* does not fit the model"):
        load_finetuned(lora, str(model))


def test_a_lora_that_changes_nothing_is_said(lora, model):
    file = lora/LORA_FILE
    save_file({name: value*("lora.down" in name or "lora_A" in name) for name, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.warns(UserWarning, match="changes no layer: it is the base model"): load_finetuned(lora, str(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_lora_comes_back_to_the_bit_in_any_dtype(lora, model, dtype):
    kept, live = load_file(lora/LORA_FILE), adapter_weights(load_finetuned(lora, str(model), dtype))
    assert kept.keys() == live.keys() and all(torch.equal(kept[name], live[name]) for name in kept)


def test_a_base_model_is_not_shown_as_a_finetuned_one(lora, model, tmp_path, capsys):
    run = tmp_path/"sampled"
    run.mkdir()
    shutil.move(lora, run/"final")
    save_file(renamed("to_q", "to_z")(load_file(run/"final"/LORA_FILE)), run/"final"/LORA_FILE,
              {"format": "pt"})
    Config(model=str(model), prompts="animals", reward="colourfulness").save(run/"config.yaml")
    assert sample_command([str(run), "a fox", "--output", str(tmp_path/"fox.png")]) == 1
    assert "does not fit the model" in capsys.readouterr().err and not (tmp_path/"fox.png").exists()


# Folders and settings that look like something else


def test_a_name_of_a_model_is_that_model_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"emoji").mkdir()
    assert load_pipeline("emoji").vae.config.latent_channels == 16


def test_a_folder_with_an_at_in_its_path_loads(model, tmp_path):
    place = tmp_path/"Drive-me@example.org"
    shutil.copytree(model, place/"model")
    pipe = load_pipeline(str(place/"model"))
    save_finetuned(pipe, make_policy(pipe, 2, 1.0, adapter="full"), place/"final")
    again = load_finetuned(place/"final", str(model)).unet.state_dict()
    assert all(torch.equal(again[name], value) for name, value in pipe.unet.state_dict().items())


def set_in(file, **values): file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_model_without_a_size_asks_for_one(copy, tmp_path, capsys):
    set_in(copy/"unet/config.json", sample_size=None)
    assert "names no size of its images: give resolution" in said_of(copy, tmp_path, capsys)
    assert image_size(load_pipeline(str(copy), resolution=64)) == 64


@pytest.mark.parametrize("steps", [60, 61, 103, 201])
def test_trailing_timesteps_are_as_many_as_asked_for(copy, steps):
    set_in(copy/"scheduler/scheduler_config.json", timestep_spacing="trailing")
    schedule = sampling_policy(load_pipeline(str(copy)), steps, 1.0).schedule
    assert schedule.num_inference_steps == steps


def test_a_spacing_that_visits_timestep_0_names_what_to_change(copy):
    set_in(copy/"scheduler/scheduler_config.json", timestep_spacing="linspace")
    with pytest.raises(ValueError, match='scheduler_config.json say timestep_spacing "trailing"'):
        sampling_policy(load_pipeline(str(copy)), 5, 1.0)


@pytest.mark.parametrize("target", ["attn1", "mid_block", "norm1", ""])
def test_a_target_that_is_no_layer_leaves_the_network_as_it_was(target, model):
    pipe = load_pipeline(str(model))
    with pytest.raises(ValueError, match="lora_targets must name layers of the network"):
        make_policy(pipe, 2, 1.0, lora_targets=("to_q", target))
    assert make_policy(pipe, 2, 1.0, lora_targets=("to_q", "conv1")).reference


@pytest.mark.parametrize("first, then", [("full", "lora"), ("lora", "full")])
def test_two_kinds_of_model_are_not_saved_over_each_other(first, then, model, tmp_path):
    for adapter in (first, then):
        pipe = load_pipeline(str(model))
        policy = make_policy(pipe, 2, 1.0, adapter=adapter)
        if adapter == first: save_finetuned(pipe, policy, tmp_path/"out")
    before = sorted((tmp_path/"out").rglob("*"))
    with pytest.raises(ValueError, match="holds a model of the other kind"):
        save_finetuned(pipe, policy, tmp_path/"out")
    assert sorted((tmp_path/"out").rglob("*")) == before


def test_prompts_and_seeds_that_do_not_match(model):
    pipe = load_pipeline(str(model))
    for prompts, seeds in ((["a fox"]*2, [0]), (["a fox"], [0, 1])):
        with pytest.raises(ValueError, match="give each image its prompt and its seed"):
            generate(pipe, prompts, seeds, 2, 1.0)


@pytest.mark.parametrize("steps, scale, says", [
    (0, 1.0, "num_inference_steps must be at least 1, not 0"),
    (2, 0.0, "guidance_scale must be at least 1"),
    (2, float("nan"), "guidance_scale must be at least 1")])
@pytest.mark.parametrize("kind", ["FluxPipeline", "StableDiffusion3Pipeline", "SanaPipeline"])
def test_flows_refuse_what_others_refuse(kind, steps, scale, says):
    with quiet_loading(): pipe = tiny_pipeline(kind)
    with pytest.raises(ValueError, match=says): sampling_policy(pipe, steps, scale)
