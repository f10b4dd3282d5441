"The reward models on small checkpoints in the true formats with the true keys; LAION's own head where it is at hand."
import json, os, pickle, subprocess, sys, types, warnings
from pathlib import Path
import httpx, huggingface_hub, numpy as np, open_clip, pytest, torch, transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode, functional as F
from prdp_nb.rewards import (CLIP_FILES, CLIP_MEAN, CLIP_STD, HPS_FILES, LOADED, AestheticHead, Aesthetic, CLIPScore, HPSv2, ImageReward, PickScore, RewardError, WeightedSum,
                             clip_pixels, clip_tokenizer, compute_rewards, embed_images, load_reward, load_weights, parse_reward)
from prdp_nb.config import Config

ROOT = Path(__file__).resolve().parents[1]
HEAD = Path(os.environ.get("PRDP_LAION_HEAD", ROOT.parent/"shared"/"data"/"laion_aesthetic_head.pth"))
HPS_FILE = "HPS_v2_compressed.pt"
PROMPTS = ["a painting of a fox", "It's 8k!! “highly-detailed” R&amp;D, naïve\n 東京 🦊", "", "a painting of a fox", "one two three four five "*30]

def photographs(sizes=((64, 64), (90, 40), (33, 71), (32, 32), (512, 300))):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).resize((w, h), Image.BILINEAR, box=(0, 0, w/3, h/3)) for w, h in sizes]

def shaken(model):
    for p in model.parameters(): p.data += 0.3*torch.randn_like(p)
    return model

def write_clip(folder, width=12):
    "A small model and its processor, as transformers saves them."
    torch.manual_seed(0)
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=width)
    config = transformers.CLIPConfig(text_config=dict(tower, eos_token_id=49407), vision_config=dict(tower, image_size=32, patch_size=8), projection_dim=width)
    shaken(transformers.CLIPModel(config)).save_pretrained(folder)
    bpe = open_clip.SimpleTokenizer()
    vocab = {piece.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): i for piece, i in bpe.encoder.items()}
    transformers.CLIPTokenizer(vocab=vocab, merges=list(bpe.bpe_ranks), model_max_length=77).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder

class SmallHPSv2(HPSv2): architecture = "small-hps"

def write_hps(folder, name=HPS_FILE, seed=1):
    "A small open_clip model, as HPSv2 is published."
    torch.manual_seed(seed)
    config = dict(embed_dim=12, vision_cfg=dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8),
                  text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2))
    (folder/"small-hps.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder/"small-hps.json")
    torch.save({"state_dict": shaken(open_clip.CLIP(**config)).state_dict()}, folder/name)
    return folder

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A folder with every small checkpoint."
    folder = tmp_path_factory.mktemp("weights")
    write_clip(write_hps(folder))
    torch.save(AestheticHead(12).state_dict(), folder/"aesthetic-model.pth")
    return folder

@pytest.fixture(autouse=True)
def one_thread_and_no_remarks():
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*lose their end.*")
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        yield

# Direct computations

@torch.no_grad()
def by_transformers(folder, images, prompts):
    "As on PickScore's model card: the cosines, and exp(logit_scale) times them."
    model = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, processor = transformers.CLIPTokenizer.from_pretrained(folder), transformers.CLIPImageProcessorPil.from_pretrained(folder)
    out = model(**tokenizer(prompts, padding=True, truncation=True, return_tensors="pt"), **processor(images, return_tensors="pt"))
    return (out.image_embeds*out.text_embeds).sum(-1), out.logits_per_image.diagonal()

def longest_side(image, size):
    "HPSv2's preprocessing, after its published code, on torchvision."
    width, height = image.size
    height, width = (round(side*size/max(image.size)) for side in (height, width))
    image, right, below = F.resize(image, (height, width), InterpolationMode.BICUBIC), size - width, size - height
    image = F.pad(image, [right//2, below//2, right - right//2, below - below//2], fill=0)
    return F.normalize(F.to_tensor(image), CLIP_MEAN, CLIP_STD)

@torch.no_grad()
def by_open_clip(file, images, prompts):
    "As in HPSv2's published code."
    model = open_clip.CLIP(**open_clip.get_model_config("small-hps")).eval()
    model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    f, g = model.encode_image(torch.stack([longest_side(image, 32) for image in images])), model.encode_text(open_clip.tokenize(prompts))
    return (f/f.norm(dim=-1, keepdim=True) @ (g/g.norm(dim=-1, keepdim=True)).T).diagonal()

def by_numpy(file, vectors):
    "LAION's head, layer by layer, in float64."
    state = {key: tensor.double().numpy() for key, tensor in torch.load(file, map_location="cpu", weights_only=True).items()}
    assert sorted(state) == sorted(f"layers.{i}.{part}" for i in (0, 2, 4, 6, 7) for part in ("weight", "bias"))
    for i in (0, 2, 4, 6, 7): vectors = vectors @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    return vectors[:, 0]

# Scores

@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_hpsv2_is_open_clip_s_cosine(weights, batch_size):
    scores = compute_rewards(SmallHPSv2(weights=weights, device="cpu", batch_size=batch_size), photographs(), PROMPTS)
    torch.testing.assert_close(scores, by_open_clip(weights/HPS_FILE, photographs(), PROMPTS), atol=1e-5, rtol=0)
    assert scores.std() > 0.01

def test_each_version_of_hpsv2_reads_its_own_file(weights, tmp_path):
    for seed, name in enumerate(HPS_FILES.values()): write_hps(tmp_path, name, seed)
    scores = {version: compute_rewards(SmallHPSv2(version, tmp_path, "cpu"), photographs(), PROMPTS) for version in HPS_FILES}
    for version, name in HPS_FILES.items(): torch.testing.assert_close(scores[version], by_open_clip(tmp_path/name, photographs(), PROMPTS), atol=1e-5, rtol=0)
    assert HPS_FILES == {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"} and (scores["v2.0"] - scores["v2.1"]).abs().max() > 0.01

@pytest.mark.parametrize("reward", [PickScore, CLIPScore])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_clip_scores_are_transformers_cosine(weights, reward, batch_size):
    scorer = reward(weights, "cpu", batch_size=batch_size)
    scores, (cosines, scaled) = compute_rewards(scorer, photographs(), PROMPTS), by_transformers(weights, photographs(), PROMPTS)
    torch.testing.assert_close(scores, cosines, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores*scorer.towers.model.logit_scale.exp(), scaled, atol=1e-4, rtol=0)
    assert scores.std() > 0.01

@pytest.mark.parametrize("batch_size", [2, 32])
def test_aesthetic_is_the_head_on_the_unit_vector(weights, batch_size):
    model, processor = transformers.CLIPModel.from_pretrained(weights, dtype=torch.float32).eval(), transformers.CLIPImageProcessorPil.from_pretrained(weights)
    with torch.no_grad(): vectors = model(**processor(photographs(), return_tensors="pt"), input_ids=torch.full((1, 2), 49407)).image_embeds
    scores = compute_rewards(Aesthetic(weights, weights, "cpu", batch_size=batch_size), photographs(), PROMPTS)
    np.testing.assert_allclose(scores, by_numpy(weights/"aesthetic-model.pth", vectors.double().numpy()), atol=1e-5)

@pytest.mark.skipif(not HEAD.is_file(), reason=f"LAION's head is not at {HEAD}; PRDP_LAION_HEAD may name another place")
def test_laion_s_own_head(tmp_path):
    vectors = torch.nn.functional.normalize(torch.randn(64, 768, generator=torch.Generator().manual_seed(0)), dim=-1)
    head = load_weights(AestheticHead(768), HEAD)
    with torch.no_grad(): ratings = head(vectors)
    np.testing.assert_allclose(ratings, by_numpy(HEAD, vectors.double().numpy()), atol=2e-5)
    scorer = Aesthetic(write_clip(tmp_path, width=768), HEAD, "cpu")
    scores = compute_rewards(scorer, photographs(), PROMPTS)
    np.testing.assert_allclose(scores, by_numpy(HEAD, embed_images(scorer.towers, photographs()).double().numpy()), atol=2e-5)

SUM = "10*pickscore + 2*hpsv2 + 0.05*aesthetic"

def sum_by_hand(weights):
    vectors = embed_images(PickScore(weights, "cpu").towers, photographs()).double().numpy()
    return (10*by_transformers(weights, photographs(), PROMPTS)[0].double() + 2*by_open_clip(weights/HPS_FILE, photographs(), PROMPTS).double()
            + 0.05*torch.tensor(by_numpy(weights/"aesthetic-model.pth", vectors))).float()

def test_the_paper_s_sum_is_the_sum_by_hand(weights):
    several = 10*PickScore(weights, "cpu") + 2*SmallHPSv2(weights=weights, device="cpu") + 0.05*Aesthetic(weights, weights, "cpu")
    assert isinstance(several, WeightedSum) and str(several) == "10*PickScore + 2*HPSv2 + 0.05*Aesthetic"
    torch.testing.assert_close(compute_rewards(several, photographs(), PROMPTS), sum_by_hand(weights), atol=2e-4, rtol=0)

def test_the_paper_s_sum_as_text(weights, tmp_path, monkeypatch):
    fill_cache(weights, tmp_path, monkeypatch, {"yuvalkirstain/PickScore_v1": CLIP_FILES})
    assert parse_reward(SUM) == [(10, "pickscore"), (2, "hpsv2"), (0.05, "aesthetic")] and Config.preset("paper_large_multi").reward == SUM
    torch.testing.assert_close(compute_rewards(SUM, photographs(), PROMPTS), sum_by_hand(weights), atol=2e-4, rtol=0)

@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_towers_are_where_and_what_was_asked_for(weights):
    for reward in (PickScore(weights, "meta", torch.float16), SmallHPSv2(weights=weights, device="meta", dtype=torch.float16)):
        assert {(p.device.type, p.dtype) for p in reward.towers.model.parameters()} == {("meta", torch.float16)}

def test_half_precision_is_near_and_returns_float32(weights):
    for reward in (PickScore(weights, "cpu"), SmallHPSv2(weights=weights, device="cpu")):
        full = compute_rewards(reward, photographs(), PROMPTS)
        low = compute_rewards(type(reward)(weights=weights, device="cpu", dtype=torch.bfloat16), photographs(), PROMPTS)
        assert low.dtype == torch.float32 and 0 < (low - full).abs().max() < 0.03

# What goes into the towers

SIZES = [(64, 64), (90, 40), (33, 71), (32, 32), (32, 20), (512, 300), (7, 9)]

def test_pixels_of_hpsv2():
    for image, size in zip(photographs(SIZES), SIZES):
        torch.testing.assert_close(clip_pixels([image], 32, pad=True)[0], longest_side(image, 32), atol=1e-6, rtol=0, msg=f"size {size}")

def test_pixels_of_the_others():
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for image, size in zip(photographs(SIZES), SIZES):
        torch.testing.assert_close(clip_pixels([image], 32, pad=False)[0], processor(image, return_tensors="pt").pixel_values[0], atol=1e-6, rtol=0, msg=f"size {size}")

def test_tokens(weights):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(weights)
    assert torch.equal(clip_tokenizer(repair=True)(PROMPTS), open_clip.tokenize(PROMPTS))
    for row, prompt in zip(clip_tokenizer(repair=False)(PROMPTS), PROMPTS):
        assert row[row > 0].tolist() == tokenizer(prompt, truncation=True).input_ids
    assert not torch.equal(clip_tokenizer(repair=True)(PROMPTS[1:2]), clip_tokenizer(repair=False)(PROMPTS[1:2]))

def test_long_prompts_are_counted_and_said_once(weights):
    scorer, other = PickScore(weights, "cpu"), CLIPScore(weights, "cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3): compute_rewards(scorer, photographs(), PROMPTS)
        compute_rewards(other, photographs()[:2], PROMPTS[:2])
    said = [str(w.message) for w in caught if "lose their end" in str(w.message)]
    assert said == [f"1 of 4 prompts are longer than the 77 tokens that PickScore reads and lose their end, the first: {PROMPTS[-1][:60]!r} …; this is said once, `.truncated` goes on counting"]
    assert (scorer.truncated, other.truncated) == (3, 0)

@pytest.mark.parametrize("words, truncated", [(75, 0), (76, 1)])
def test_a_prompt_of_75_tokens_fits(weights, words, truncated):
    scorer = PickScore(weights, "cpu")
    compute_rewards(scorer, photographs()[:1], ["fox "*words])
    assert scorer.truncated == truncated

# Loading

def test_nothing_heavy_is_imported_before_a_score_is_asked_for():
    code = """if True:
        import json, sys, prdp_nb.rewards as r
        reward = r.load_reward("10*pickscore + 2*hpsv2 + 0.05*aesthetic + clip_score + hpsv2_1 + image_reward")
        print(json.dumps([str(reward), [m for m in ("open_clip", "transformers", "huggingface_hub", "torchvision", "ImageReward") if m in sys.modules]]))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["10*PickScore + 2*HPSv2 + 0.05*Aesthetic + 1*CLIPScore + 1*HPSv2.1 + 1*ImageReward", []]

def test_rewards_share_their_weights_and_let_them_go(weights):
    scorers = [PickScore(weights, "cpu"), CLIPScore(weights, "cpu"), Aesthetic(weights, weights, "cpu")]
    assert len({id(scorer.towers) for scorer in scorers}) == 1 and len(LOADED) == 1
    assert PickScore(weights, "cpu", torch.bfloat16).towers is not scorers[0].towers
    del scorers
    assert len(LOADED) == 0

def test_loading_draws_no_random_numbers(weights):
    before = torch.get_rng_state()
    compute_rewards(PickScore(weights, "cpu") + SmallHPSv2(weights=weights, device="cpu") + Aesthetic(weights, weights, "cpu"), photographs(), PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)

def test_weights_are_frozen(weights):
    for scorer in (PickScore(weights, "cpu"), SmallHPSv2(weights=weights, device="cpu")):
        assert not scorer.towers.model.training and not any(p.requires_grad for p in scorer.towers.model.parameters())
    assert not Aesthetic(weights, weights, "cpu").head.training

def test_constants_of_old_checkpoints_are_no_unknown_keys(weights, tmp_path):
    (tmp_path/"config.json").write_bytes((weights/"config.json").read_bytes())
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None], "vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file(load_file(weights/"model.safetensors") | old, tmp_path/"model.safetensors")
    assert torch.equal(compute_rewards(PickScore(tmp_path, "cpu"), photographs(), PROMPTS), compute_rewards(PickScore(weights, "cpu"), photographs(), PROMPTS))

# Errors

def message(reward) -> str: # one line, the same alone and in a sum
    said = set()
    for form in (reward, 0.5*reward + "colourfulness"):
        with pytest.raises(RewardError) as caught: compute_rewards(form, photographs(), PROMPTS)
        said.add(str(caught.value))
    assert len(said) == 1 and "\n" not in min(said)
    return said.pop()

def spoilt(state): # a state dict -> what is wrong with it, the spoilt one, what the error says
    first, *rest = sorted(state)
    return {"missing": ({key: state[key] for key in rest}, f"1 missing: {first}"),
            "unknown": (state | {"extra.weight": torch.ones(1)}, "1 unknown: extra.weight"),
            "renamed": ({f"module.{key}": tensor for key, tensor in state.items()}, f"{len(state)} unknown: module.{first}"),
            "shape": (state | {first: torch.ones(2, 5)}, f"1 of another shape: {first}")}

@pytest.mark.parametrize("fault", ["missing", "unknown", "renamed", "shape"])
def test_keys_that_do_not_fit_are_named(weights, tmp_path, fault):
    (tmp_path/"config.json").write_bytes((weights/"config.json").read_bytes())
    content, expected = spoilt(torch.load(weights/HPS_FILE, weights_only=True)["state_dict"])[fault]
    torch.save({"state_dict": content}, tmp_path/HPS_FILE)
    said = message(SmallHPSv2(weights=tmp_path, device="cpu"))
    assert expected in said and f"{tmp_path/HPS_FILE} does not hold the weights of CLIP" in said
    content, expected = spoilt(load_file(weights/"model.safetensors"))[fault]
    save_file(content, tmp_path/"model.safetensors")
    assert expected in message(PickScore(tmp_path, "cpu"))
    content, expected = spoilt(torch.load(weights/"aesthetic-model.pth", weights_only=True))[fault]
    torch.save(content, tmp_path/"aesthetic-model.pth")
    assert expected in message(Aesthetic(weights, tmp_path, "cpu"))

class Bomb:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)

@pytest.mark.parametrize("content", ["code", "text", "nothing", "a tensor"])
def test_files_that_are_no_weights(tmp_path, content):
    file, trace = tmp_path/HPS_FILE, tmp_path/"code has run"
    if content == "code": torch.save({"state_dict": {}, "more": Bomb(trace)}, file)
    elif content == "a tensor": torch.save(torch.ones(3), file)
    else: file.write_bytes(b"<html>not found</html>" if content == "text" else b"")
    assert message(SmallHPSv2(weights=file, device="cpu")).startswith(f"{file} cannot be read as weights (")
    assert not trace.exists()
    file.with_name("plain.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    assert "plain.pkl cannot be read as weights (" in message(SmallHPSv2(weights=file.with_name("plain.pkl"), device="cpu"))
    assert not trace.exists()

def test_a_torn_safetensors_file(weights, tmp_path):
    (tmp_path/"config.json").write_bytes((weights/"config.json").read_bytes())
    (tmp_path/"model.safetensors").write_bytes((weights/"model.safetensors").read_bytes()[:-100])
    assert f"{tmp_path/'model.safetensors'} cannot be read as weights (SafetensorError" in message(PickScore(tmp_path, "cpu"))

@pytest.mark.parametrize("reward, missing", [
    (lambda folder: HPSv2(weights=folder), HPS_FILE), (lambda folder: HPSv2("v2.1", folder), "HPS_v2.1_compressed.pt"), (PickScore, "config.json"),
    (lambda folder: CLIPScore(str(folder/"model.safetensors")), "model.safetensors/config.json"),
    (Aesthetic, "config.json")], ids=["hpsv2", "hpsv2_1", "pickscore", "clip_score", "aesthetic"])
def test_a_local_file_that_is_not_there(weights, tmp_path, monkeypatch, reward, missing):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: weights/name)
    assert f"finds no file {tmp_path/missing}: give the path of a folder with " in message(reward(tmp_path))

def test_a_head_that_is_not_there(weights, tmp_path):
    assert f"reward Aesthetic finds no file {tmp_path/'aesthetic-model.pth'}" in message(Aesthetic(weights, tmp_path, "cpu"))

FAILURES = {"unreachable": huggingface_hub.errors.LocalEntryNotFoundError("cannot find the file\ncheck your connection"), "disk full": OSError("no space left on device"),
            "gone": huggingface_hub.errors.RepositoryNotFoundError("404 Client Error\nRepository Not Found", response=httpx.Response(404, request=httpx.Request("GET", "https://hub")))}
@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("name, repository, files, argument", [
    ("hpsv2", "xswu/HPSv2", HPS_FILE, "HPSv2(weights=PATH)"), ("hpsv2_1", "xswu/HPSv2", "HPS_v2.1_compressed.pt", "HPSv2(weights=PATH)"),
    ("pickscore", "yuvalkirstain/PickScore_v1", " and ".join(CLIP_FILES), "PickScore(weights=PATH)"),
    ("clip_score", "openai/clip-vit-large-patch14", " and ".join(CLIP_FILES), "CLIPScore(weights=PATH)"),
    ("aesthetic", "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth", "Aesthetic(head=PATH)")], ids=lambda value: value.replace(" ", "_"))
def test_a_hub_that_gives_nothing(monkeypatch, error, name, repository, files, argument):
    def refuse(*_, **__): raise error
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    said = message(load_reward(name))
    assert f"needs {files} of https://huggingface.co/{repository}, and cannot fetch that ({type(error).__name__}: {str(error).splitlines()[0]})" in said
    assert argument in said and f"`hf download {repository} {files.replace(' and ', ' ')}`" in said and f"models--{repository.replace('/', '--')}" in said

def test_the_clip_of_the_aesthetic_rating_is_asked_for_once_its_head_is_here(weights, monkeypatch):
    def refuse(*_, **__): raise ConnectionError("no route to host")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    said = message(Aesthetic(head=weights, device="cpu"))
    assert "needs config.json and model.safetensors of https://huggingface.co/openai/clip-vit-large-patch14" in said and "Aesthetic(weights=PATH)" in said

def fill_cache(weights, folder, monkeypatch, more={}):
    "A cache of the hub with the small checkpoints under their true names, and no network."
    for repository, names in ({"xswu/HPSv2": [HPS_FILE], "openai/clip-vit-large-patch14": CLIP_FILES, "trl-lib/ddpo-aesthetic-predictor": ["aesthetic-model.pth"]} | more).items():
        place = folder/f"models--{repository.replace('/', '--')}"
        for name in names:
            (place/"snapshots"/("0"*40)).mkdir(parents=True, exist_ok=True)
            (place/"snapshots"/("0"*40)/name).write_bytes((weights/name).read_bytes())
        (place/"refs").mkdir()
        (place/"refs"/"main").write_text("0"*40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(HPSv2, "architecture", "small-hps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

def test_a_cache_folder_that_was_copied_serves_without_the_hub(weights, tmp_path, monkeypatch):
    fill_cache(weights, tmp_path, monkeypatch)
    here = SmallHPSv2(weights=weights, device="cpu") + Aesthetic(weights, weights, "cpu")
    assert torch.equal(compute_rewards("hpsv2 + aesthetic", photographs(), PROMPTS), compute_rewards(here, photographs(), PROMPTS))
    assert f"copy the folder it fills to {tmp_path/'models--yuvalkirstain--PickScore_v1'}" in message(PickScore())

def test_image_reward_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    said = message(ImageReward(device="cpu"))
    assert said.startswith("reward ImageReward cannot load the package image-reward (ModuleNotFoundError: ") and "in an environment of its own" in said

def test_image_reward_with_its_package(monkeypatch):
    class Model:
        def score(self, prompt, image): return len(prompt) + image.width/1000
    asked = []
    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=lambda name, device: asked.append((name, device)) or Model()))
    reward = ImageReward(device="cpu")
    assert not asked
    scores = compute_rewards(reward, photographs(), PROMPTS)
    np.testing.assert_allclose(scores, [len(prompt) + image.width/1000 for image, prompt in zip(photographs(), PROMPTS)], rtol=1e-6)
    assert asked == [("ImageReward-v1.0", "cpu")]
