"A random pipeline with Stable Diffusion v1.4's structure, for tests: the same blocks, latents, tokens and schedule, at a width and depth that a CPU core can bear."
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from prdp_nb.loading import quiet_loading

WORDS = "a painting of the photo fox duck cow bee cat dog horse".split()
WIDTH = 32 # of the prompt embeddings, 768 in v1.4

def tokenizer() -> CLIPTokenizer:
    "77 tokens; each of `WORDS` is one, anything else is spelt byte by byte."
    merges, tokens = [], [*sorted(ByteLevel.alphabet())]
    tokens += [c + "</w>" for c in tokens]
    for word in WORDS:
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for piece in rest:
            if (left, piece) not in merges: merges.append((left, piece))
            left += piece
            tokens.append(left)
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)

def unet(channels=(8, 16, 16, 16), size: int = 8, **changes) -> UNet2DConditionModel:
    "Three stages with cross-attention and one without, as in v1.4, where each has two layers and the channels are (320, 640, 1280, 1280)."
    cross = ["CrossAttnDownBlock2D"]*3 + ["DownBlock2D"]
    config = dict(sample_size=size, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=channels, down_block_types=cross,
                  up_block_types=[name.replace("Down", "Up") for name in cross[::-1]], cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=4)
    return UNet2DConditionModel(**config | changes)

def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    "8×8 latents of four channels, pictures of 64×64, v1.4's scheduler."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        words = tokenizer()
        text = CLIPTextConfig(vocab_size=len(words), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
                              bos_token_id=len(words) - 2, eos_token_id=len(words) - 1)
        vae = AutoencoderKL(block_out_channels=(4, 8, 8, 8), down_block_types=["DownEncoderBlock2D"]*4, up_block_types=["UpDecoderBlock2D"]*4, layers_per_block=1,
                            norm_num_groups=4, latent_channels=4, sample_size=64, scaling_factor=0.18215)
        scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
        return StableDiffusionPipeline(vae, CLIPTextModel(text), words, unet(), scheduler, None, None, requires_safety_checker=False)

def write_tiny_pipeline(folder, seed: int = 0):
    "In diffusers' format; returns the folder."
    with quiet_loading(): tiny_pipeline(seed).save_pretrained(folder)
    return folder
