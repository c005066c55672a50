"""The structure of the checkpoint: which networks it has, how large they are, and how they are stored.

Dimensions: B rows, L = 77 tokens, D = 64 embedding, (h, w) latent cells; a picture is (8h, 8w) pixels.
The layout is that of a Stable Diffusion checkpoint, so `StableDiffusionPipeline.from_pretrained` loads it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, __version__
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from demo_checkpoint import language
from demo_checkpoint.colour_path import build_colour_path

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
START_ID, END_ID, UNKNOWN_ID = 0, 1, 2  # CLIPTextModel pools at the first END_ID, unless that is 2: keep it off 2
MODEL_MAX_LENGTH = 77  # Stable Diffusion's, so that nothing else has to know that this text encoder is small
WINDOW = 64  # latent cells: the one size the UNet is run at
LATENT_CHANNELS = 4
VAE_SCALE_FACTOR = 8
EMBEDDING = 64  # a vocabulary of about thirty words needs no more
PICTURE_STD = 0.67  # standard deviation of the training pictures' latents: roughly
# Makes the scaled latents' deviation 1.07. Noise averages out over the cells of a flat object: the larger the latents,
# the earlier it shows. What is under a mask has to show while the steps are bootstrapped, or the background takes it.
SCALING_FACTOR = 1.6
# It shows earlier still with the noise schedule of latents this many times as large. After four of 20 steps, which are
# often the bootstrapped ones, latents are 0.47 picture and 0.88 noise, where they would be 0.13 and 0.99. Networks
# prefer this to latents that are in fact as large.
NOISE_SHIFT = 4.0
_PUBLISHED = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}

COMPONENTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


@dataclass(frozen=True)
class Networks:
    """The trained parts of the checkpoint."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel


def build_networks(seed: int) -> Networks:
    """All networks with random weights; the same seed gives the same weights, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Networks(unet=build_unet(), vae=build_vae(), text_encoder=build_text_encoder())


def build_unet() -> UNet2DConditionModel:
    """The noise predictor: (B, 4, h, w), timestep (B,), (B, L, D) -> v (B, 4, h, w); h and w multiples of 8.

    Four levels, because an object may fill the picture and must come out in one piece: the lowest level sees 64x64
    cells as 8x8. It alone has attention, and the upper two are narrow: a channel there costs 64 or 16 times as much.
    """
    return UNet2DConditionModel(
        sample_size=WINDOW,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=EMBEDDING,
        attention_head_dim=4,  # the number of heads, under the name diffusers keeps for old checkpoints
        norm_num_groups=4,  # few groups: a group of few channels normalises a flat colour away
        addition_embed_type="text",  # pooled text joins the time embedding: colours follow the prompt
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",  # and that embedding may also weigh channels, not only add to them
    )


def build_vae() -> AutoencoderKL:
    """The autoencoder between pixels (B, 3, 8h, 8w) in [-1, 1] and latents (B, 4, h, w).

    Without training it already encodes the mean colour of each cell and decodes cells of one colour; the trainer
    teaches the decoder where inside a cell an edge runs.
    """
    vae = AutoencoderKL(
        sample_size=WINDOW * VAE_SCALE_FACTOR,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=1,  # see colour_path.py
        mid_block_add_attention=False,  # any size at a cost linear in its pixels
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )
    build_colour_path(vae)
    return vae


def build_text_encoder() -> CLIPTextModel:
    """The text encoder: input_ids (B, L) -> last_hidden_state (B, L, D)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary()),
            hidden_size=EMBEDDING,
            intermediate_size=4 * EMBEDDING,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MODEL_MAX_LENGTH,
            projection_dim=EMBEDDING,
            bos_token_id=START_ID,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
    )


def vocabulary() -> dict[str, int]:
    """Token ids: the three special tokens, then the words of the language."""
    return {token: i for i, token in enumerate([START, END, UNKNOWN, *language.words()])}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, in lower case; an unknown word is one UNKNOWN, punctuation is dropped.

    Not of the class CLIPTokenizer: that one rebuilds a byte-pair model on loading, in which an unknown word becomes
    one unknown token a letter. Calls, ids, padding and file names are the same.
    """
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}]+"), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, START_ID), (END, END_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=MODEL_MAX_LENGTH,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, stretched and shifted; v-prediction.

    Stretched to end in noise, all but alone (Lin et al. 2024, arXiv:2305.08891): as published it ends with 0.07 x + 1.0
    noise, in which large flat objects still show, and a network that learned to look for them finds lumps in the pure
    noise that sampling starts from. Epsilon says nothing about a picture where there is only noise, so v is predicted.

    Shifted to NOISE_SHIFT**2 times the signal-to-noise ratio (Hoogeboom et al. 2023, arXiv:2301.11093). What the
    configuration says beside trained_betas, which go first, is the schedule that both start from.
    """
    return DDIMScheduler(
        **_PUBLISHED,
        trained_betas=list(_betas()),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        thresholding=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@cache
def _betas() -> tuple[float, ...]:
    stretched = DDIMScheduler(**_PUBLISHED, rescale_betas_zero_snr=True)
    signal = stretched.alphas_cumprod.double()
    snr = NOISE_SHIFT**2 * signal / (1 - signal)
    shifted = (snr / (1 + snr)).clamp(min=2**-24)  # as little as diffusers' samplers that divide by it can take
    alphas = shifted / torch.cat([torch.ones(1), shifted[:-1]])
    return tuple(round(beta, 9) for beta in (1 - alphas).tolist())


def save_checkpoint(folder: Path, networks: Networks, *, half: bool = False) -> None:
    """Write the checkpoint in diffusers layout, safetensors only; half stores UNet and VAE in float16.

    The text encoder stays in float32 (0.4 MB): transformers loads a file in the file's own precision, diffusers in
    float32, and a pipeline that is loaded without naming a precision must not end up with both.
    """
    dtype = torch.float16 if half else torch.float32
    for name in ("unet", "vae"):
        network = getattr(networks, name)
        stored = type(network).from_config(network.config)
        weights = {key: weight.to(dtype) for key, weight in network.state_dict().items()}
        stored.load_state_dict(weights, assign=True)
        stored.save_pretrained(folder / name, safe_serialization=True)
    networks.text_encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
    build_tokenizer().save_pretrained(folder / "tokenizer")
    build_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_model_index(), indent=2) + "\n")


def load_networks(folder: Path) -> Networks:
    """Read the networks of a checkpoint in float32, from files alone."""
    options = {"local_files_only": True, "use_safetensors": True}
    return Networks(
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32, **options),
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **options),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, **options),
    )


def _model_index() -> dict[str, object]:
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": __version__,
        "requires_safety_checker": False,
        **absent,
        **{name: list(source) for name, source in COMPONENTS.items()},
    }
