"""The reward models on small checkpoints in the true formats with the true keys; LAION's own head
where it is at hand."""
import json, os, pickle, sys, types, warnings
from pathlib import Path
import httpx, huggingface_hub, numpy as np, open_clip, pytest, torch, transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode, functional as F
from prdp_nb.clip_rewards import (CLIP_FILES, HPS_FILES, LOADED, AestheticHead, Aesthetic,
                                  CLIPScore, HPSv2, ImageReward, PickScore, clip_tokenizer,
                                  cropped_pixels, embed_images, load_weights, padded_pixels)
from prdp_nb.rewards import RewardError, WeightedSum, compute_rewards, load_reward

ROOT = Path(__file__).resolve().parents[1]
SHARED_HEAD = ROOT.parent/"shared"/"data"/"laion_aesthetic_head.pth"
HEAD = Path(os.environ.get("PRDP_LAION_HEAD", SHARED_HEAD))
HPS_FILE, HEAD_FILE = "HPS_v2_compressed.pt", "aesthetic-model.pth"
PROMPTS = ["a painting of a fox", "It's 8k!! “highly-detailed” R&amp;D, naïve\n 東京 🦊", "",
           "a painting of a fox", "one two three four five "*30]

def photographs(sizes=((64, 64), (90, 40), (33, 71), (32, 32), (512, 300))):
    rng = np.random.default_rng(0)
    def photograph(w, h):
        image = Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
        return image.resize((w, h), Image.BILINEAR, box=(0, 0, w/3, h/3))
    return [photograph(w, h) for w, h in sizes]

def shaken(model):
    for p in model.parameters(): p.data += 0.3*torch.randn_like(p)
    return model

def small_processor():
    square = dict(height=32, width=32)
    return transformers.CLIPImageProcessorPil(size=dict(shortest_edge=32), crop_size=square)

def small_tokenizer():
    bpe = open_clip.SimpleTokenizer()
    marks = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {marks.get(piece, piece): i for piece, i in bpe.encoder.items()}
    merges = list(bpe.bpe_ranks)
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)

def write_clip(folder, width=12):
    "A small model and its processor, as transformers saves them."
    torch.manual_seed(0)
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                 projection_dim=width)
    config = transformers.CLIPConfig(
        text_config=dict(tower, eos_token_id=49407),
        vision_config=dict(tower, image_size=32, patch_size=8), projection_dim=width)
    shaken(transformers.CLIPModel(config)).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    small_processor().save_pretrained(folder)
    return folder

class SmallHPSv2(HPSv2): architecture = "small-hps"

def write_hps(folder, name=HPS_FILE, seed=1):
    "A small open_clip model, as HPSv2 is published."
    torch.manual_seed(seed)
    vision = dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8)
    text = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2)
    config = dict(embed_dim=12, vision_cfg=vision, text_cfg=text)
    (folder/"small-hps.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder/"small-hps.json")
    torch.save({"state_dict": shaken(open_clip.CLIP(**config)).state_dict()}, folder/name)
    return folder

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A folder with every small checkpoint."
    folder = tmp_path_factory.mktemp("weights")
    write_clip(write_hps(folder))
    torch.save(AestheticHead(12).state_dict(), folder/HEAD_FILE)
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
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    out = model(**tokens, **processor(images, return_tensors="pt"))
    return (out.image_embeds*out.text_embeds).sum(-1), out.logits_per_image.diagonal()

def standardised(image):
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return F.normalize(F.to_tensor(image), mean, std)

def longest_side(image, size):
    "HPSv2's preprocessing, after its published code, on torchvision."
    width, height = image.size
    height, width = (round(side*size/max(image.size)) for side in (height, width))
    image = F.resize(image, (height, width), InterpolationMode.BICUBIC)
    right, below = size - width, size - height
    return standardised(F.pad(image, [right//2, below//2, right - right//2, below - below//2], 0))

def middle(image, size):
    "CLIP's preprocessing, on Pillow."
    width, height = (int(side*size/min(image.size)) for side in image.size)
    left, top = (width - size)//2, (height - size)//2
    resized = image.resize((width, height), Image.BICUBIC)
    return standardised(resized.crop((left, top, left + size, top + size)))

@torch.no_grad()
def by_open_clip(file, images, prompts):
    "As in HPSv2's published code."
    model = open_clip.CLIP(**open_clip.get_model_config("small-hps")).eval()
    model.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    f = model.encode_image(torch.stack([longest_side(image, 32) for image in images]))
    g = model.encode_text(open_clip.tokenize(prompts))
    return (f/f.norm(dim=-1, keepdim=True) @ (g/g.norm(dim=-1, keepdim=True)).T).diagonal()

def by_numpy(file, vectors):
    "LAION's head, layer by layer, in float64."
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    state = {key: tensor.double().numpy() for key, tensor in tensors.items()}
    layers = (0, 2, 4, 6, 7)
    keys = [f"layers.{i}.{part}" for i in layers for part in ("bias", "weight")]
    assert sorted(state) == keys
    for i in layers:
        vectors = vectors @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    return vectors[:, 0]

def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)

# Scores

@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_hpsv2_is_open_clip_s_cosine(weights, batch_size):
    scorer = SmallHPSv2(weights=weights, device="cpu", batch_size=batch_size)
    scores = compute_rewards(scorer, photographs(), PROMPTS)
    close(scores, by_open_clip(weights/HPS_FILE, photographs(), PROMPTS))
    assert scores.std() > 0.01

def test_each_version_of_hpsv2_reads_its_own_file(weights, tmp_path):
    scores = {}
    for seed, (version, name) in enumerate(HPS_FILES.items()):
        write_hps(tmp_path, name, seed)
        scorer = SmallHPSv2(version, tmp_path, "cpu")
        scores[version] = compute_rewards(scorer, photographs(), PROMPTS)
        close(scores[version], by_open_clip(tmp_path/name, photographs(), PROMPTS))
    assert HPS_FILES == {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
    assert (scores["v2.0"] - scores["v2.1"]).abs().max() > 0.01

@pytest.mark.parametrize("reward", [PickScore, CLIPScore])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_clip_scores_are_transformers_cosine(weights, reward, batch_size):
    scorer = reward(weights, "cpu", batch_size=batch_size)
    scores = compute_rewards(scorer, photographs(), PROMPTS)
    cosines, scaled = by_transformers(weights, photographs(), PROMPTS)
    close(scores, cosines)
    close(scores*scorer.towers.model.logit_scale.exp(), scaled, atol=1e-4)
    assert scores.std() > 0.01

@pytest.mark.parametrize("batch_size", [2, 32])
def test_aesthetic_is_the_head_on_the_unit_vector(weights, batch_size):
    model = transformers.CLIPModel.from_pretrained(weights, dtype=torch.float32).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(weights)
    pixels, end = processor(photographs(), return_tensors="pt"), torch.full((1, 2), 49407)
    with torch.no_grad(): vectors = model(**pixels, input_ids=end).image_embeds
    scorer = Aesthetic(weights, weights, "cpu", batch_size=batch_size)
    scores = compute_rewards(scorer, photographs(), PROMPTS)
    expected = by_numpy(weights/HEAD_FILE, vectors.double().numpy())
    np.testing.assert_allclose(scores, expected, atol=1e-5)

WITHOUT_HEAD = f"LAION's head is not at {HEAD}; PRDP_LAION_HEAD may name another place"

@pytest.mark.skipif(not HEAD.is_file(), reason=WITHOUT_HEAD)
def test_laion_s_own_head(tmp_path):
    drawn = torch.randn(64, 768, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(drawn, dim=-1)
    head = load_weights(AestheticHead(768), HEAD)
    with torch.no_grad(): ratings = head(vectors)
    np.testing.assert_allclose(ratings, by_numpy(HEAD, vectors.double().numpy()), atol=2e-5)
    scorer = Aesthetic(write_clip(tmp_path, width=768), HEAD, "cpu")
    scores = compute_rewards(scorer, photographs(), PROMPTS)
    vectors = embed_images(scorer.towers, photographs()).double().numpy()
    np.testing.assert_allclose(scores, by_numpy(HEAD, vectors), atol=2e-5)

SUM = "10*pickscore + 2*hpsv2 + 0.05*aesthetic"

def sum_here(weights): # the same rewards, with the small checkpoints
    several = 10*PickScore(weights, "cpu") + 2*SmallHPSv2(weights=weights, device="cpu")
    return several + 0.05*Aesthetic(weights, weights, "cpu")

def sum_by_hand(weights):
    vectors = embed_images(PickScore(weights, "cpu").towers, photographs()).double().numpy()
    pickscore = by_transformers(weights, photographs(), PROMPTS)[0].double()
    hpsv2 = by_open_clip(weights/HPS_FILE, photographs(), PROMPTS).double()
    aesthetic = torch.tensor(by_numpy(weights/HEAD_FILE, vectors))
    return (10*pickscore + 2*hpsv2 + 0.05*aesthetic).float()

def test_the_paper_s_sum_is_the_sum_by_hand(weights):
    several = sum_here(weights)
    assert isinstance(several, WeightedSum)
    assert str(several) == "10*PickScore + 2*HPSv2 + 0.05*Aesthetic"
    close(compute_rewards(several, photographs(), PROMPTS), sum_by_hand(weights), atol=2e-4)

def test_the_paper_s_sum_as_text(weights, tmp_path, monkeypatch):
    fill_cache(weights, tmp_path, monkeypatch, {"yuvalkirstain/PickScore_v1": CLIP_FILES})
    close(compute_rewards(SUM, photographs(), PROMPTS), sum_by_hand(weights), atol=2e-4)

@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_towers_are_where_and_what_was_asked_for(weights):
    half = dict(weights=weights, device="meta", dtype=torch.float16)
    for reward in (PickScore(**half), SmallHPSv2(**half)):
        found = {(p.device.type, p.dtype) for p in reward.towers.model.parameters()}
        assert found == {("meta", torch.float16)}

def test_half_precision_is_near_and_returns_float32(weights):
    for reward in (PickScore, SmallHPSv2):
        def scores(**options):
            scorer = reward(weights=weights, device="cpu", **options)
            return compute_rewards(scorer, photographs(), PROMPTS)
        full, low = scores(), scores(dtype=torch.bfloat16)
        assert low.dtype == torch.float32 and 0 < (low - full).abs().max() < 0.03

# What goes into the towers

SIZES = [(64, 64), (90, 40), (33, 71), (32, 32), (32, 20), (512, 300), (7, 9)]

def test_pixels_of_hpsv2():
    for image in photographs(SIZES):
        close(padded_pixels([image], 32)[0], longest_side(image, 32), atol=1e-6)

def test_pixels_of_the_others():
    processor = small_processor()
    for image in photographs(SIZES):
        pixels = cropped_pixels([image], 32)[0]
        close(pixels, processor(image, return_tensors="pt").pixel_values[0], atol=1e-6)
        close(pixels, middle(image, 32), atol=1e-6)

@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
@pytest.mark.parametrize("pixels", [padded_pixels, cropped_pixels])
def test_an_image_of_any_mode_is_read_as_rgb(pixels, mode):
    image, = photographs([(90, 40)])
    if mode == "RGBA": image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    assert torch.equal(pixels([image], 32), pixels([image.convert("RGB")], 32))

def test_tokens(weights):
    tokenizer = transformers.CLIPTokenizer.from_pretrained(weights)
    repaired, plain = clip_tokenizer(repair=True), clip_tokenizer(repair=False)
    assert torch.equal(repaired(PROMPTS), open_clip.tokenize(PROMPTS))
    for row, prompt in zip(plain(PROMPTS), PROMPTS):
        assert row[row > 0].tolist() == tokenizer(prompt, truncation=True).input_ids
    assert not torch.equal(repaired(PROMPTS[1:2]), plain(PROMPTS[1:2]))

def test_long_prompts_are_counted_and_said_once(weights):
    scorer, other = PickScore(weights, "cpu"), CLIPScore(weights, "cpu")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3): compute_rewards(scorer, photographs(), PROMPTS)
        compute_rewards(other, photographs()[:2], PROMPTS[:2])
    said = [str(w.message) for w in caught if "lose their end" in str(w.message)]
    assert said == ["1 of 4 prompts are longer than the 77 tokens that PickScore reads and lose "
                    f"their end, the first: {PROMPTS[-1][:60]!r} …; this is said once, "
                    "`.truncated` goes on counting"]
    assert (scorer.truncated, other.truncated) == (3, 0)

@pytest.mark.parametrize("words, truncated", [(75, 0), (76, 1)])
def test_a_prompt_of_75_tokens_fits(weights, words, truncated):
    scorer = PickScore(weights, "cpu")
    compute_rewards(scorer, photographs()[:1], ["fox "*words])
    assert scorer.truncated == truncated

# Loading

def test_rewards_share_their_weights_and_let_them_go(weights):
    scorers = [PickScore(weights, "cpu"), CLIPScore(weights, "cpu"),
               Aesthetic(weights, weights, "cpu")]
    assert len({id(scorer.towers) for scorer in scorers}) == 1 and len(LOADED) == 1
    assert PickScore(weights, "cpu", torch.bfloat16).towers is not scorers[0].towers
    del scorers
    assert len(LOADED) == 0

def test_loading_draws_no_random_numbers(weights):
    before = torch.get_rng_state()
    compute_rewards(sum_here(weights), photographs(), PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)

def test_weights_are_frozen(weights):
    for scorer in (PickScore(weights, "cpu"), SmallHPSv2(weights=weights, device="cpu")):
        model = scorer.towers.model
        assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not Aesthetic(weights, weights, "cpu").head.training

def copy_config(weights, folder):
    (folder/"config.json").write_bytes((weights/"config.json").read_bytes())

def test_constants_of_old_checkpoints_are_no_unknown_keys(weights, tmp_path):
    copy_config(weights, tmp_path)
    old = {"text_model.embeddings.position_ids": torch.arange(77)[None],
           "vision_model.embeddings.position_ids": torch.arange(17)[None]}
    save_file(load_file(weights/"model.safetensors") | old, tmp_path/"model.safetensors")
    with_constants, without = (compute_rewards(PickScore(folder, "cpu"), photographs(), PROMPTS)
                               for folder in (tmp_path, weights))
    assert torch.equal(with_constants, without)

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
    renamed = {f"module.{key}": tensor for key, tensor in state.items()}
    return {"missing": ({key: state[key] for key in rest}, f"1 missing: {first}"),
            "unknown": (state | {"extra.weight": torch.ones(1)}, "1 unknown: extra.weight"),
            "renamed": (renamed, f"{len(state)} unknown: module.{first}"),
            "shape": (state | {first: torch.ones(2, 5)}, f"1 of another shape: {first}")}

@pytest.mark.parametrize("fault", ["missing", "unknown", "renamed", "shape"])
def test_keys_that_do_not_fit_are_named(weights, tmp_path, fault):
    copy_config(weights, tmp_path)
    state = torch.load(weights/HPS_FILE, weights_only=True)["state_dict"]
    content, expected = spoilt(state)[fault]
    torch.save({"state_dict": content}, tmp_path/HPS_FILE)
    said = message(SmallHPSv2(weights=tmp_path, device="cpu"))
    assert expected in said
    assert f"{tmp_path/HPS_FILE} does not hold the weights of CLIP" in said
    content, expected = spoilt(load_file(weights/"model.safetensors"))[fault]
    save_file(content, tmp_path/"model.safetensors")
    assert expected in message(PickScore(tmp_path, "cpu"))
    content, expected = spoilt(torch.load(weights/HEAD_FILE, weights_only=True))[fault]
    torch.save(content, tmp_path/HEAD_FILE)
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
    said = message(SmallHPSv2(weights=file, device="cpu"))
    assert said.startswith(f"{file} cannot be read as weights (")
    assert not trace.exists()
    plain = file.with_name("plain.pkl")
    plain.write_bytes(pickle.dumps(Bomb(trace)))
    said = message(SmallHPSv2(weights=plain, device="cpu"))
    assert "plain.pkl cannot be read as weights (" in said
    assert not trace.exists()

def test_a_torn_safetensors_file(weights, tmp_path):
    copy_config(weights, tmp_path)
    file = tmp_path/"model.safetensors"
    file.write_bytes((weights/file.name).read_bytes()[:-100])
    expected = f"{file} cannot be read as weights (SafetensorError"
    assert expected in message(PickScore(tmp_path, "cpu"))

@pytest.mark.parametrize("reward, missing", [
    (lambda folder: HPSv2(weights=folder), HPS_FILE),
    (lambda folder: HPSv2("v2.1", folder), "HPS_v2.1_compressed.pt"), (PickScore, "config.json"),
    (lambda folder: CLIPScore(str(folder/"model.safetensors")), "model.safetensors/config.json"),
    (Aesthetic, "config.json")], ids=["hpsv2", "hpsv2_1", "pickscore", "clip_score", "aesthetic"])
def test_a_local_file_that_is_not_there(weights, tmp_path, monkeypatch, reward, missing):
    def from_hub(repository, name): return weights/name
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", from_hub)
    said = message(reward(tmp_path))
    assert f"finds no file {tmp_path/missing}: give the path of a folder with " in said

def test_a_head_that_is_not_there(weights, tmp_path):
    said = message(Aesthetic(weights, tmp_path, "cpu"))
    assert f"reward Aesthetic finds no file {tmp_path/HEAD_FILE}" in said

NOT_FOUND = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
ERRORS = huggingface_hub.errors
FAILURES = {
    "unreachable": ERRORS.LocalEntryNotFoundError("cannot find the file\ncheck your connection"),
    "disk full": OSError("no space left on device"),
    "gone": ERRORS.RepositoryNotFoundError("404 Client Error\nRepository Not Found",
                                           response=NOT_FOUND)}
CLIP_PAIR = " and ".join(CLIP_FILES)

@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("name, repository, files, argument", [
    ("hpsv2", "xswu/HPSv2", HPS_FILE, "HPSv2(weights=PATH)"),
    ("hpsv2_1", "xswu/HPSv2", "HPS_v2.1_compressed.pt", "HPSv2(weights=PATH)"),
    ("pickscore", "yuvalkirstain/PickScore_v1", CLIP_PAIR, "PickScore(weights=PATH)"),
    ("clip_score", "openai/clip-vit-large-patch14", CLIP_PAIR, "CLIPScore(weights=PATH)"),
    ("aesthetic", "trl-lib/ddpo-aesthetic-predictor", HEAD_FILE, "Aesthetic(head=PATH)")],
    ids=lambda value: value.replace(" ", "_"))
def test_a_hub_that_gives_nothing(monkeypatch, error, name, repository, files, argument):
    def refuse(*_, **__): raise error
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    said = message(load_reward(name))
    reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    for expected in (f"needs {files} of https://huggingface.co/{repository}, and cannot fetch that "
                     f"({reason})", argument,
                     f"`hf download {repository} {files.replace(' and ', ' ')}`",
                     f"models--{repository.replace('/', '--')}"):
        assert expected in said

def test_the_clip_of_the_aesthetic_rating_is_asked_for_once_its_head_is_here(weights, monkeypatch):
    def refuse(*_, **__): raise ConnectionError("no route to host")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    said = message(Aesthetic(head=weights, device="cpu"))
    assert f"needs {CLIP_PAIR} of https://huggingface.co/openai/clip-vit-large-patch14" in said
    assert "Aesthetic(weights=PATH)" in said

def fill_cache(weights, folder, monkeypatch, more={}):
    "A cache of the hub with the small checkpoints under their true names, and no network."
    repositories = {"xswu/HPSv2": [HPS_FILE], "openai/clip-vit-large-patch14": CLIP_FILES,
                    "trl-lib/ddpo-aesthetic-predictor": [HEAD_FILE]}
    for repository, names in (repositories | more).items():
        place, commit = folder/f"models--{repository.replace('/', '--')}", "0"*40
        snapshot = place/"snapshots"/commit
        snapshot.mkdir(parents=True)
        for name in names: (snapshot/name).write_bytes((weights/name).read_bytes())
        (place/"refs").mkdir()
        (place/"refs"/"main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(HPSv2, "architecture", "small-hps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

def test_a_cache_folder_that_was_copied_serves_without_the_hub(weights, tmp_path, monkeypatch):
    fill_cache(weights, tmp_path, monkeypatch)
    here = SmallHPSv2(weights=weights, device="cpu") + Aesthetic(weights, weights, "cpu")
    from_cache = compute_rewards("hpsv2 + aesthetic", photographs(), PROMPTS)
    assert torch.equal(from_cache, compute_rewards(here, photographs(), PROMPTS))
    place = tmp_path/"models--yuvalkirstain--PickScore_v1"
    assert f"copy the folder it fills to {place}" in message(PickScore())

def test_image_reward_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    said = message(ImageReward(device="cpu"))
    assert said.startswith("reward ImageReward cannot load the package image-reward "
                           "(ModuleNotFoundError: ")
    assert "in an environment of its own" in said

def test_image_reward_with_its_package(monkeypatch):
    class Model:
        def score(self, prompt, image): return len(prompt) + image.width/1000
    asked = []
    def load(name, device):
        asked.append((name, device))
        return Model()
    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=load))
    reward = ImageReward(device="cpu")
    assert not asked
    scores = compute_rewards(reward, photographs(), PROMPTS)
    expected = [len(prompt) + image.width/1000 for image, prompt in zip(photographs(), PROMPTS)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert asked == [("ImageReward-v1.0", "cpu")]
