"""Pipelines of the true sizes with random weights: nothing is downloaded, no text encoder is made.

Each is a stock pipeline whose network and VAE have the sizes that the model's own files give. Its
prompts become random embeddings of the right shapes, the same ones each time.
"""
import zlib
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, SD3Transformer2DModel,
                       StableDiffusionPipeline, UNet2DConditionModel)
from torch import nn
from prdp_nb.families import tiny_pipeline
from prdp_nb.loading import quiet_loading
from prdp_nb.models import family_of, network_of

TOKENS = 77
CROSS, PLAIN = ["CrossAttnDownBlock2D"], ["DownBlock2D"]
UNET = dict(in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=32)
VAE = dict(latent_channels=4, layers_per_block=2, norm_num_groups=32, scaling_factor=0.18215,
           block_out_channels=(128, 256, 512, 512), sample_size=512)
SD14 = dict(vae=VAE, unet=UNET | dict(
    sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768,
    attention_head_dim=8, down_block_types=CROSS*3 + PLAIN))
SMALL = dict(layers_per_block=1, norm_num_groups=4)
TINY = dict(
    vae=VAE | SMALL | dict(sample_size=64, block_out_channels=(4, 8, 8, 8)),
    unet=SD14["unet"] | SMALL | dict(sample_size=8, block_out_channels=(8, 16, 16, 16),
                                     cross_attention_dim=32, attention_head_dim=2))
SDXL = dict(
    vae=VAE | dict(scaling_factor=0.13025, sample_size=1024, force_upcast=True),
    unet=UNET | dict(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20), transformer_layers_per_block=(1, 2, 10),
        down_block_types=PLAIN + CROSS*2, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6*256 + 1280))
SD35_MEDIUM = dict(
    vae=VAE | dict(scaling_factor=1.5305, shift_factor=0.0609, sample_size=1024,
                   latent_channels=16, use_quant_conv=False, use_post_quant_conv=False),
    transformer=dict(
        sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24,
        attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=24*64, pooled_projection_dim=2048, pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)), qk_norm="rms_norm"))
KINDS = dict( # class of the pipeline -> its sizes, tokens of a prompt, width of a pooled prompt
    StableDiffusionPipeline=(SD14, TOKENS, None),
    StableDiffusionXLPipeline=(SDXL, TOKENS, 1280),
    StableDiffusion3Pipeline=(SD35_MEDIUM, TOKENS + 256, 2048))

def make_unet(size: dict) -> UNet2DConditionModel: # on torch's default device
    up = [name.replace("Down", "Up") for name in size["unet"]["down_block_types"][::-1]]
    return UNet2DConditionModel(up_block_types=up, **size["unet"])

def make_network(size: dict) -> nn.Module: # on torch's default device
    if "unet" in size: return make_unet(size)
    return SD3Transformer2DModel(**size["transformer"])

def make_vae(size: dict) -> AutoencoderKL: # on torch's default device
    return AutoencoderKL(down_block_types=["DownEncoderBlock2D"]*4,
                         up_block_types=["UpDecoderBlock2D"]*4, **size["vae"])

@torch.no_grad()
def filled(module: nn.Module, dtype: torch.dtype, device: str) -> nn.Module: # from the meta device
    "Weights that keep the size of what passes through: norms of 1, no bias, the others normal."
    module = module.to(dtype).to_empty(device=device)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.ndim > 1: tensor.normal_(std=tensor[0].numel()**-0.5)
        else: tensor.fill_(0 if name.endswith("bias") else 1)
    return module.eval()

def random_rows(prompts: list[str], *shape: int) -> torch.Tensor: # (N, *shape), by the prompt
    seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed))
                        for seed in seeds])

def answer_at_random(pipe, tokens: int, width: int, pooled: int | None):
    "The pipeline's `encode_prompt` gives random embeddings, whatever its encoders are."
    def encode_prompt(prompts, *given):
        device = network_of(pipe).device
        words = random_rows(prompts, tokens, width).to(device), None
        return words if pooled is None else (*words, random_rows(prompts, pooled).to(device), None)
    pipe.encode_prompt = encode_prompt
    if pooled and "unet" in pipe.components: pipe.text_encoder_2.config.projection_dim = pooled

def tokenize(prompts, **options): # stands for a tokenizer
    raise NotImplementedError("prompts are not tokenized here")

def small_frame(kind: str): # of KINDS -> a pipeline with schedule and encoders, to be filled
    if kind != "StableDiffusionPipeline": return tiny_pipeline(kind)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    encoder = nn.Linear(1, 1) # only moved between devices
    return StableDiffusionPipeline(make_vae(TINY), encoder, tokenize, make_unet(TINY), scheduler,
                                   None, None, requires_safety_checker=False)

def put(pipe, size: dict, dtype: torch.dtype, device: str): # the network and the VAE of a size
    torch.manual_seed(0)
    with torch.device("meta"): network, vae = make_network(size), make_vae(size)
    parts = {family_of(pipe).network: filled(network, dtype, device)}
    pipe.register_modules(vae=filled(vae, dtype, device), **parts)

def width_of(size: dict) -> int: # of a token's embedding
    if "unet" in size: return size["unet"]["cross_attention_dim"]
    return size["transformer"]["joint_attention_dim"]

def make_pipeline(kind: str, dtype: torch.dtype, device: str, size: dict | None = None):
    "A pipeline of `KINDS`; `size` in place of the true one."
    true_size, tokens, pooled = KINDS[kind]
    size = size or true_size
    with quiet_loading():
        pipe = small_frame(kind)
        put(pipe, size, dtype, device)
        answer_at_random(pipe, tokens, width_of(size), pooled)
        family_of(pipe).prepare(pipe)
    return pipe
