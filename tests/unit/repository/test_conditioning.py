"""Several text encoders, pooled embeddings and sizes: what Stable Diffusion XL's UNet takes."""

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from conditioning import Conditioning, join_encodings, make_time_ids
from row_plan import Regions
from sampling import Bootstrapping, Denoising, UNetRows
from schedulers import make_scheduler
from tests.unit.repository.tiny import CONFIG, EMBEDDING, WINDOW, answer, make_unet
from views import View, make_views

CELL = 8
POOLED = 12
TIME_EMBEDDING = 8


def hidden(texts: int, width: int, seed: int) -> Tensor:
    return torch.randn(texts, 5, width, generator=torch.Generator().manual_seed(seed))


def test_hidden_states_stand_side_by_side_and_the_pooled_ones_are_the_second_encoders() -> None:
    first, second, pooled = hidden(2, 3, 0), hidden(2, 4, 1), torch.ones(2, POOLED)
    encodings = [{"last_hidden_state": first}, {"last_hidden_state": second, "text_embeds": pooled}]
    joined = join_encodings(encodings, [False, False], time_ids=None)
    assert torch.equal(joined.encoder_hidden_states, torch.cat([first, second], dim=-1))
    assert joined.text_embeds is not None
    assert torch.equal(joined.text_embeds, pooled)


def test_zeroed_texts_are_zeros_in_everything() -> None:
    encodings = [{"last_hidden_state": hidden(2, 3, 0), "text_embeds": torch.ones(2, POOLED)}]
    joined = join_encodings(encodings, [True, False], time_ids=None)
    assert joined.text_embeds is not None
    assert not joined.encoder_hidden_states[0].any()
    assert not joined.text_embeds[0].any()
    assert torch.equal(joined.encoder_hidden_states[1], encodings[0]["last_hidden_state"][1])
    assert joined.text_embeds[1].all()


def test_one_text_encoder_without_more_has_nothing_more() -> None:
    joined = join_encodings([{"last_hidden_state": hidden(1, 3, 0)}], [False], time_ids=None)
    assert joined.text_embeds is None
    assert joined.time_ids is None


def test_a_view_is_conditioned_as_the_crop_that_it_is() -> None:
    time_ids = make_time_ids(10, 20, views=[View(0, 0), View(2, 12)], window=8, cell=CELL)
    assert time_ids.tolist() == [[80, 160, 0, 0, 64, 64], [80, 160, 16, 96, 64, 64]]


@pytest.fixture(scope="module")
def sdxl_unet() -> Any:
    """A real UNet of SDXL's kind with some thousand random weights."""
    return make_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBEDDING,
        projection_class_embeddings_input_dim=6 * TIME_EMBEDDING + POOLED,
    )


def predict_with(unet: Any, seen: list[UNetRows]) -> Any:
    def predict(rows: UNetRows) -> Tensor:
        seen.append(rows)
        added = {"text_embeds": rows.text_embeds, "time_ids": rows.time_ids}
        prediction: Tensor = unet(
            rows.sample, rows.timestep, rows.encoder_hidden_states, added_cond_kwargs=added
        ).sample
        return prediction

    return predict


def paint(unet: Any, width: int, seen: list[UNetRows]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Final latents of one region; its noise, embeddings and pooled embeddings, prompt before negative."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(1, 4, WINDOW, width, generator=generator)
    embeds, pooled = hidden(2, EMBEDDING, 3), torch.randn(2, POOLED, generator=generator)
    views = make_views(WINDOW, width, window=WINDOW, stride=4)
    regions = Regions(
        masks=torch.ones(1, WINDOW, width, dtype=torch.bool),
        views=views,
        window=WINDOW,
        prompt_embedding=[0],
        negative_embedding=[1],
        guidance_scale=7.5,
    )
    denoising = Denoising(
        noise,
        Conditioning(embeds, pooled, make_time_ids(WINDOW, width, views=views, window=WINDOW, cell=CELL)),
        scheduler=make_scheduler("euler", CONFIG, 4),
        regions=regions,
        bootstrapping=Bootstrapping(
            torch.zeros(1, 4, WINDOW, WINDOW), torch.zeros(0, len(views), 1, dtype=torch.int64)
        ),
        generator=generator,
    )
    return answer(denoising, predict_with(unet, seen)), noise, embeds, pooled


def test_one_region_in_one_window_is_the_picture_of_diffusers_sdxl(sdxl_unet: Any) -> None:
    found, noise, embeds, pooled = paint(sdxl_unet, WINDOW, [])
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=sdxl_unet,
        scheduler=make_scheduler("euler", CONFIG, 4),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    side = WINDOW * CELL
    expected = pipeline(
        prompt_embeds=embeds[:1],
        negative_prompt_embeds=embeds[1:],
        pooled_prompt_embeds=pooled[:1],
        negative_pooled_prompt_embeds=pooled[1:],
        latents=noise,
        height=side,
        width=side,
        num_inference_steps=4,
        guidance_scale=7.5,
        output_type="latent",
    ).images
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_every_row_carries_its_own_views_sizes_and_its_own_texts_pooled_embedding(sdxl_unet: Any) -> None:
    seen: list[UNetRows] = []
    _, _, embeds, pooled = paint(sdxl_unet, WINDOW + 8, seen)
    for rows in seen:
        assert rows.text_embeds is not None
        for hidden_states, text_embeds in zip(rows.encoder_hidden_states, rows.text_embeds, strict=True):
            text = next(i for i in range(2) if torch.equal(hidden_states, embeds[i]))
            assert torch.equal(text_embeds, pooled[text])
    lefts = {int(left) for rows in seen if rows.time_ids is not None for left in rows.time_ids[:, 3]}
    assert lefts == {0, 32, 64}
