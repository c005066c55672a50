"""The checkpoint's structure: tokens, schedule, files, and that diffusers reads them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from demo_checkpoint import language
from demo_checkpoint import networks as networks_module
from demo_checkpoint.networks import (
    END_ID,
    MODEL_MAX_LENGTH,
    NOISE_SHIFT,
    START_ID,
    UNKNOWN_ID,
    Networks,
    build_networks,
    build_scheduler,
    build_tokenizer,
    load_networks,
    save_checkpoint,
)
from demo_checkpoint.train_vae import cell_colours


@pytest.fixture(scope="module")
def networks() -> Networks:
    return build_networks(0)


@pytest.fixture(scope="module")
def half_checkpoint(networks: Networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, networks, half=True)
    return folder


def ids(text: str) -> list[int]:
    return list(build_tokenizer()(text).input_ids)


def test_every_word_of_the_language_is_one_token_of_its_own() -> None:
    tokens = [ids(word) for word in language.words()]
    assert [len(token) for token in tokens] == [3] * len(tokens)
    assert len({token[1] for token in tokens} - {START_ID, END_ID, UNKNOWN_ID}) == len(tokens)


@pytest.mark.parametrize("word", ["husky", "Zürich", "犬", "reddish", "x1"])
def test_an_unknown_word_is_one_unknown_token(word: str) -> None:
    assert ids(f"a {word}") == [START_ID, *ids("a")[1:-1], UNKNOWN_ID, END_ID]


def test_case_and_punctuation_change_nothing() -> None:
    assert ids("A Red, circle!") == ids("a red circle")


@pytest.mark.parametrize("text", ["", " ", "🐶", "\n\t", "\u0301", "a" * 5000, "<|endoftext|>"])
def test_any_text_becomes_ids_that_the_text_encoder_knows(text: str, networks: Networks) -> None:
    encoded = build_tokenizer()(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert encoded.shape == (1, MODEL_MAX_LENGTH)
    assert int(encoded.max()) < networks.text_encoder.config.vocab_size
    assert networks.text_encoder(encoded).last_hidden_state.isfinite().all()


def test_the_text_encoder_pools_at_the_end_of_the_prompt(networks: Networks) -> None:
    encoded = build_tokenizer()("a red circle", padding="max_length", return_tensors="pt").input_ids
    output = networks.text_encoder(encoded)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 4])  # start, a, red, circle, end


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, networks: Networks) -> None:
    torch.rand(7)  # whatever was drawn before
    for name, built in (("first", networks), ("second", build_networks(0))):
        save_checkpoint(tmp_path / name, built)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_building_networks_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    build_networks(1)
    assert torch.equal(before, torch.get_rng_state())


def test_diffusers_loads_a_half_checkpoint_in_one_precision_and_paints(half_checkpoint: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(half_checkpoint, use_safetensors=True, local_files_only=True)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red husky", num_inference_steps=1, output_type="np").images.shape == (1, 512, 512, 3)


def test_a_checkpoint_reads_back(half_checkpoint: Path, networks: Networks) -> None:
    loaded = load_networks(half_checkpoint)
    for stored, built in zip(loaded.unet.parameters(), networks.unet.parameters(), strict=True):
        torch.testing.assert_close(stored, built, rtol=1e-3, atol=1e-6)


def test_a_half_checkpoint_stays_below_15_megabytes(half_checkpoint: Path) -> None:
    assert sum(path.stat().st_size for path in half_checkpoint.rglob("*") if path.is_file()) < 15e6


def test_the_schedule_is_stable_diffusions_stretched_and_shifted(half_checkpoint: Path) -> None:
    config = json.loads((half_checkpoint / "scheduler" / "scheduler_config.json").read_text())
    expected = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": False,  # the betas have it
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "thresholding": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    assert {key: config[key] for key in expected} == expected
    scheduler = DDIMScheduler.from_pretrained(half_checkpoint / "scheduler")
    stretched = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    found, published = (each.alphas_cumprod[:-1] for each in (scheduler, stretched))
    torch.testing.assert_close(found / (1 - found), NOISE_SHIFT**2 * published / (1 - published), rtol=1e-3, atol=0)
    assert 0 < scheduler.alphas_cumprod[-1] < 1e-7  # samplers divide by it
    scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[0]) == 999


def test_the_checkpoint_that_comes_with_the_project_has_this_schedule() -> None:
    shipped = Path(networks_module.__file__).parent / "checkpoint" / "scheduler"
    assert DDIMScheduler.from_pretrained(shipped).config.trained_betas == build_scheduler().config.trained_betas


def test_the_untrained_encoder_measures_cell_colours_and_the_decoder_keeps_them(networks: Networks) -> None:
    flat = torch.tensor([0.9, -0.4, 0.1]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    half_red = torch.cat([flat, flat.flip(1)], dim=3)
    with torch.no_grad():
        for pictures in (flat, half_red):
            latents = networks.vae.encode(pictures).latent_dist.mode()
            torch.testing.assert_close(latents, cell_colours(pictures), rtol=0, atol=0.01)
            colours = networks.vae.decode(latents).sample
            torch.testing.assert_close(colours, pictures, rtol=0, atol=0.15)
