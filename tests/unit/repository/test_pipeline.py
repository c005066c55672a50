"""From parameters to a picture, with networks that are closed forms and remember what they were asked."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from batching import UNetBatcher
from checkpoint import Checkpoint, TextEncoder
from errors import CancelledRequestError, InvalidRequestError, NetworkError, NotFiniteError
from parameters import Parameters
from pipeline import BACKGROUND_STREAM, Observer, Picture, check_finite, paint
from preview import preview_image
from regions import make_canvas
from sampling import UNetRows, draw_bootstrapping
from schedulers import SAMPLERS, make_scheduler
from tests.unit.repository.tiny import CONFIG, EMBEDDING, MAX_LENGTH, make_checkpoint, make_tokenizer

CHECKPOINT = make_checkpoint()
COLOURS = torch.tensor([0.5, -0.25, 0.75, 0.0])  # of the latent channels, in KnowingNetworks' picture


class Networks:
    """The UNet depends on sample, timestep and prompt; it gives way to other requests as a real one does."""

    def __init__(self, checkpoint: Checkpoint = CHECKPOINT) -> None:
        self.calls: list[UNetRows] = []
        self.decoded: list[Tensor] = []
        self._cell = checkpoint.vae_scale_factor
        self.complete_step = UNetBatcher(self.unet, max_batch_size=checkpoint.unet_max_batch_size).complete_step

    async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> dict[str, Tensor]:
        await asyncio.sleep(0)
        ids = torch.from_numpy(input_ids).to(torch.float32)  # (U, L)
        outputs = {"last_hidden_state": ids[..., None] * torch.linspace(0.1, 1, EMBEDDING)}  # (U, L, D)
        if "text_embeds" in encoder.outputs:
            outputs["text_embeds"] = ids.sum(dim=1, keepdim=True) + torch.arange(3)  # (U, P)
        return outputs

    async def unet(self, rows: UNetRows) -> Tensor:
        self.calls.append(rows)
        await asyncio.sleep(0)
        return self.predict(rows)

    def predict(self, rows: UNetRows) -> Tensor:
        prompt = rows.encoder_hidden_states.mean(dim=(1, 2))  # (B)
        shift = torch.sin(prompt + rows.timestep / 100)
        return 0.2 * rows.sample + shift[:, None, None, None]

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        await asyncio.sleep(0)
        self.decoded.append(latents)
        pixels = latents[:, :3].repeat_interleave(self._cell, dim=2)
        return pixels.repeat_interleave(self._cell, dim=3)

    @property
    def steps(self) -> list[int]:
        """The step of each call, for one request alone whose timesteps differ."""
        timesteps = [float(call.timestep[0]) for call in self.calls]
        return [list(dict.fromkeys(timesteps)).index(timestep) for timestep in timesteps]

    @property
    def rows(self) -> int:
        return sum(len(call.sample) for call in self.calls)


UNSEEN = Observer()


class KnowingNetworks(Networks):
    """A UNet that was only ever shown one even colour: whatever it paints has that colour."""

    def __init__(self, checkpoint: Checkpoint = CHECKPOINT) -> None:
        super().__init__(checkpoint)
        self._alphas_cumprod: Tensor = make_scheduler("ddim", checkpoint.scheduler_config, 1).alphas_cumprod

    def predict(self, rows: UNetRows) -> Tensor:
        alpha = self._alphas_cumprod[rows.timestep.to(torch.int64)][:, None, None, None]
        return (rows.sample - alpha.sqrt() * self.colours(rows)) / (1 - alpha).sqrt()

    def colours(self, _rows: UNetRows) -> Tensor:
        """What it was shown: (B or 1, 4, 1, 1)."""
        return COLOURS[None, :, None, None]


Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels
LEFT, RIGHT = (0, 0, 64, 32), (0, 40, 64, 64)


def parameters_of(height: int = 64, width: int = 64, boxes: list[Box] | None = None, **changes: Any) -> Parameters:
    """A short request with one prompt per box."""
    boxes = [LEFT] if boxes is None else boxes
    masks = np.zeros((len(boxes), height, width), dtype=np.bool_)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    prompts = ("the moon", "a red cat", "a blue dog", "cat on moon")[: len(boxes) + 1]
    parameters = Parameters(
        prompt=prompts,
        negative_prompt=("",) * len(prompts),
        masks=masks,
        height=height,
        width=width,
        num_inference_steps=4,
        bootstrapping=2,
        guidance_scale=7.5,
        seed=11,
        scheduler="ddim",
        view_stride=4,
    )
    return replace(parameters, **changes)


async def painted(
    parameters: Parameters,
    networks: Networks,
    *,
    checkpoint: Checkpoint = CHECKPOINT,
    observer: Observer = UNSEEN,
) -> Picture:
    return await paint(parameters, checkpoint=checkpoint, networks=networks, observer=observer)


def picture_of(parameters: Parameters, networks: Networks | None = None, **options: Any) -> Picture:
    return asyncio.run(painted(parameters, networks or Networks(), **options))


def check_every_pixel(height: int, width: int, window: int, **changes: Any) -> None:
    """Paint with networks that know one colour: each pixel of the size asked for has it, and none is blank."""
    checkpoint = replace(make_checkpoint(window=window), scheduler_config=CONFIG | {"set_alpha_to_one": True})
    parameters = parameters_of(height, width, [(0, 0, height // 2, width)], **changes)
    picture = picture_of(parameters, KnowingNetworks(checkpoint), checkpoint=checkpoint)
    levels = (COLOURS[:3] / checkpoint.scaling_factor / 2 + 0.5).clamp(0, 1) * 255
    assert picture.image.dtype == np.uint8
    expected = np.broadcast_to(levels.round().to(torch.uint8).numpy(), (height, width, 3))
    np.testing.assert_array_equal(picture.image, expected)


def check_every_pixel_at_true_size(height: int, width: int) -> None:
    """With the reference's window of 64 cells (512 pixels) and stride of 8."""
    check_every_pixel(height, width, window=64, view_stride=8, num_inference_steps=2, bootstrapping=1)


@pytest.mark.parametrize(("height", "width"), [(448, 512), (511, 511), (512, 480), (300, 512), (640, 300)])
def test_fault_1_a_side_below_512_pixels_is_not_left_blank(height: int, width: int) -> None:
    """The reference has no view at all there: blank pictures, HTTP 200."""
    check_every_pixel_at_true_size(height, width)


@pytest.mark.parametrize(("height", "width"), [(447, 447), (64, 64), (320, 440)])
def test_fault_2_both_sides_below_448_pixels_are_painted(height: int, width: int) -> None:
    """The reference ends in a shape error."""
    check_every_pixel_at_true_size(height, width)


@pytest.mark.parametrize(("height", "width"), [(568, 512), (512, 600), (520, 520)])
def test_fault_3_no_strip_at_the_right_or_bottom_edge_stays_blank(height: int, width: int) -> None:
    """The reference's last view ends before the edge where a side is not 512 plus a multiple of 64."""
    check_every_pixel_at_true_size(height, width)


@pytest.mark.parametrize(("height", "width"), [(513, 512), (519, 515), (65, 131)])
def test_fault_4_a_size_that_is_no_multiple_of_8_is_not_rounded_down(height: int, width: int) -> None:
    check_every_pixel_at_true_size(height, width)


@pytest.mark.parametrize("side", range(64, 64 + 2 * 8 * 4 + 1))
def test_every_size_is_painted_to_its_last_pixel(side: int) -> None:
    """All that differs between sizes repeats after a stride of 4 cells; the plan of every size: test_every_size.py."""
    check_every_pixel(side, 64 + (side * 7) % 130, window=8, num_inference_steps=2, bootstrapping=1)


@pytest.mark.parametrize(("height", "width"), [(2048, 2048), (64, 8192), (1447, 2898)])
def test_the_largest_sizes_are_painted_to_their_last_pixel(height: int, width: int) -> None:
    check_every_pixel(height, width, window=64, view_stride=64, num_inference_steps=1, bootstrapping=0)


def test_fault_15_window_stride_factor_and_sizes_are_the_checkpoints() -> None:
    """The reference has windows of 64 cells and a factor of 8 whatever the checkpoint, and no sizes for SDXL's UNet."""
    xl = replace(
        make_checkpoint(window=16, vae_scale_factor=4),
        time_ids=True,
        text_encoders=(TextEncoder("text_encoder_2", ("last_hidden_state", "text_embeds"), make_tokenizer()),),
    )
    networks = Networks(xl)
    picture = picture_of(parameters_of(70, 90, view_stride=xl.view_stride), networks, checkpoint=xl)
    assert {tuple(call.sample.shape[1:]) for call in networks.calls} == {(4, 16, 16)}
    assert picture.latents.shape == (4, 18, 23)
    assert picture.image.shape == (70, 90, 3)
    seen = {tuple(row) for call in networks.calls if call.time_ids is not None for row in call.time_ids.tolist()}
    crops = [(top, left) for top in (0, 2) for left in (0, 4, 7)]  # of 18 x 23 cells, 4 apart and flush with the edges
    assert seen == {(72, 92, 4 * top, 4 * left, 64, 64) for top, left in crops}
    assert {call.text_embeds is None for call in networks.calls} == {False}


def test_regions_lie_where_their_masks_are() -> None:
    """A picture smaller than a window is painted in the middle of one, its masks with it."""
    checkpoint = make_checkpoint(window=16)

    class Painting(KnowingNetworks):
        """Light for the background's prompt, dark for the region's."""

        def colours(self, rows: UNetRows) -> Tensor:
            first_word = rows.encoder_hidden_states[:, 1, 0] * 10  # "the" 9, "a" 3
            return torch.where(first_word > 6, 1.0, -1.0)[:, None, None, None]

    parameters = parameters_of(64, 96, [(8, 16, 40, 48)], guidance_scale=1.0, num_inference_steps=8)
    image = picture_of(parameters, Painting(checkpoint), checkpoint=checkpoint).image
    dark = (image < 128).all(axis=2)
    assert np.array_equal(dark, parameters.masks[0])


def test_any_value_but_zero_is_inside_a_mask() -> None:
    parameters = parameters_of(64, 96, [(8, 16, 40, 48)])
    levels = np.where(parameters.masks, np.random.default_rng(0).integers(1, 256, parameters.masks.shape), 0)
    image = picture_of(replace(parameters, masks=levels.astype(np.uint8))).image
    assert np.array_equal(image, picture_of(parameters).image)


def test_decoder_gets_the_latents_in_the_autoencoders_own_scale() -> None:
    networks = Networks()
    picture = picture_of(parameters_of(), networks)
    torch.testing.assert_close(networks.decoded[0][0] * CHECKPOINT.scaling_factor, picture.latents)


def test_large_canvas_is_decoded_in_tiles_of_the_checkpoints_size() -> None:
    networks = Networks()
    parameters = parameters_of(70, 200)
    tiled = picture_of(parameters, networks, checkpoint=replace(CHECKPOINT, vae_tile=8))
    assert {tuple(tile.shape) for tile in networks.decoded} == {(1, 4, 8, 8)}
    whole = picture_of(parameters)
    assert np.abs(tiled.image.astype(int) - whole.image).max() <= 1  # rounding, where tiles fade


def test_levels_beyond_white_and_black_are_clamped() -> None:
    class Glaring(Networks):
        async def vae_decoder(self, latents: Tensor) -> Tensor:
            pixels = torch.zeros_like(await super().vae_decoder(latents))
            pixels[0, 0], pixels[0, 1] = 3.0, -3.0
            return pixels

    assert picture_of(parameters_of(), Glaring()).image[5, 7].tolist() == [255, 0, 128]


def test_steps_are_told_in_order_before_they_are_taken() -> None:
    networks = Networks()
    told: list[tuple[int, int]] = []
    parameters = parameters_of(num_inference_steps=5)
    picture_of(parameters, networks, observer=Observer(lambda step: told.append((step, len(networks.calls)))))
    assert [step for step, _ in told] == [0, 1, 2, 3, 4, 5]
    calls_before = [sum(called < step for called in networks.steps) for step in range(6)]
    assert [calls for _, calls in told] == calls_before


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_cancelled_request_asks_no_network_again(stop: int) -> None:
    networks = Networks()

    def before_step(step: int) -> None:
        if step == stop:
            raise CancelledRequestError("enough")

    parameters = parameters_of(width=100, num_inference_steps=5)
    with pytest.raises(CancelledRequestError, match="enough"):
        picture_of(parameters, networks, observer=Observer(before_step))
    assert sorted(set(networks.steps)) == list(range(stop))
    assert networks.decoded == []


def test_the_rows_to_come_are_told_before_the_first_of_them() -> None:
    networks = Networks()
    planned: list[tuple[int, int, int]] = []
    observer = Observer(planned=lambda rows, reference: planned.append((rows, reference, len(networks.calls))))
    picture = picture_of(parameters_of(width=100, boxes=[LEFT, RIGHT]), networks, observer=observer)
    assert planned == [(picture.report["unet_rows"], picture.report["unet_rows_reference"], 0)]


def test_a_preview_every_two_steps_has_a_pixel_for_each_cell_in_sight_in_the_pictures_colour() -> None:
    """Of a network that knows one colour the estimate is right from the first step."""
    previews: list[npt.NDArray[np.uint8]] = []
    parameters = parameters_of(height=100, width=72, boxes=[], num_inference_steps=5, preview_every=2)
    picture_of(parameters, KnowingNetworks(), observer=Observer(preview=previews.append))
    assert [preview.shape for preview in previews] == [(13, 9, 3)] * 2
    expected = COLOURS @ CHECKPOINT.preview[:-1] + CHECKPOINT.preview[-1]
    for preview in previews:
        colour = torch.from_numpy(preview).float().mean(dim=(0, 1)) / 255
        torch.testing.assert_close(colour, expected.clamp(0, 1), rtol=0, atol=0.01)


def test_no_preview_is_made_that_nobody_asked_for() -> None:
    previews: list[npt.NDArray[np.uint8]] = []
    picture_of(parameters_of(), observer=Observer(preview=previews.append))
    assert previews == []


def test_a_preview_changes_nothing() -> None:
    plain, watched = (picture_of(parameters_of(scheduler="euler_a", preview_every=every)) for every in (0, 1))
    assert torch.equal(plain.latents, watched.latents)


@pytest.mark.parametrize("scheduler", sorted(SAMPLERS))
def test_the_estimate_is_the_picture_whatever_the_sampler(scheduler: str) -> None:
    previews: list[npt.NDArray[np.uint8]] = []
    parameters = parameters_of(boxes=[], scheduler=scheduler, num_inference_steps=3, preview_every=1)
    picture_of(parameters, KnowingNetworks(), observer=Observer(preview=previews.append))
    known = COLOURS[None, :, None, None].expand(1, 4, 8, 8)
    expected = preview_image(known, CHECKPOINT, make_canvas(64, 64, window=8, cell=8))
    assert len(previews) == 3
    for preview in previews:
        np.testing.assert_allclose(preview, expected, atol=2)


def test_failure_of_a_network_is_the_requests() -> None:
    class Failing(Networks):
        def predict(self, rows: UNetRows) -> Tensor:
            if self.steps[-1] == 2:
                raise NetworkError("unet", 14, "out of memory")
            return super().predict(rows)

    networks = Failing()
    with pytest.raises(NetworkError, match="unet: out of memory"):
        picture_of(parameters_of(), networks)
    assert networks.steps[-1] == 2


def warnings_of(parameters: Parameters) -> list[tuple[str, str]]:
    return [(warning["field"], warning["message"]) for warning in picture_of(parameters).warnings]


class Overflowing(Networks):
    """One network gives a value that is not finite, as half precision does."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self._network = network

    def _overflow(self, network: str, values: Tensor) -> Tensor:
        values.view(-1)[-1] += torch.inf if network == self._network else 0
        return values

    async def unet(self, rows: UNetRows) -> Tensor:
        values = await super().unet(rows)
        return self._overflow("unet", values) if len(self.calls) == 2 else values

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        return self._overflow("vae_decoder", await super().vae_decoder(latents))


@pytest.mark.parametrize(
    ("network", "where", "unet_calls"),
    [("unet", "after step 2", 2), ("vae_decoder", "in the picture", 4)],
)
def test_values_that_are_not_finite_fail_the_request_and_name_their_network(
    network: str, where: str, unet_calls: int
) -> None:
    networks = Overflowing(network)
    with pytest.raises(NotFiniteError, match=f"^{network}: expected finite values, found others {where}$"):
        picture_of(parameters_of(boxes=[]), networks)
    assert len(networks.calls) == unet_calls


def test_finite_values_whose_sum_is_not_are_finite() -> None:
    check_finite(torch.full((4,), 3e38), "unet", "here")


def test_nothing_is_warned_of_without_need() -> None:
    assert warnings_of(parameters_of(boxes=[LEFT, RIGHT])) == []


def test_fault_10_a_region_that_is_empty_does_not_vanish_silently() -> None:
    assert warnings_of(parameters_of(boxes=[LEFT, (0, 0, 0, 0)])) == [
        ("masks[1]", "region is empty; its prompt has no effect")
    ]


@pytest.mark.parametrize("top", range(26, 34))
def test_fault_10_a_stroke_thinner_than_a_cell_does_not_vanish(top: int) -> None:
    """The reference's nearest resize sees one pixel of eight."""
    networks = Networks()
    picture = picture_of(parameters_of(boxes=[(top, 0, top + 1, 64)], guidance_scale=1.0, bootstrapping=0), networks)
    assert picture.warnings == []
    assert {len(call.sample) for call in networks.calls} == {2}  # the background's row and the stroke's


def test_fault_13_an_overlap_is_averaged_equally_and_told_with_its_pixels() -> None:
    assert warnings_of(parameters_of(boxes=[LEFT, RIGHT, (60, 30, 64, 42)])) == [
        ("masks[2]", "overlaps masks[0] in 8 pixels, masks[1] in 8 pixels; there they are averaged"),
    ]

    class Painting(KnowingNetworks):
        """Of the colour that the second word of a prompt has: "red" 4, "blue" 6, "moon" 10."""

        def colours(self, rows: UNetRows) -> Tensor:
            return (rows.encoder_hidden_states[:, 2, 0] / 10)[:, None, None, None]

    checkpoint = replace(CHECKPOINT, scheduler_config=CONFIG | {"set_alpha_to_one": True})
    shared = parameters_of(boxes=[(0, 0, 64, 40), (0, 24, 64, 64)], guidance_scale=1.0, bootstrapping=0)
    latents = picture_of(shared, Painting(checkpoint), checkpoint=checkpoint).latents
    colours = [latents[:, :, columns].mean().item() for columns in (slice(0, 3), slice(3, 5), slice(5, 8))]
    np.testing.assert_allclose(colours, np.array([4, 5, 6]) / 100, atol=1e-4)


@pytest.mark.parametrize("bootstrapping", [4, 5])
def test_fault_7_bootstrapping_to_the_end_is_not_silent(bootstrapping: int) -> None:
    """Regions that are bootstrapped in every step are never harmonised."""
    assert warnings_of(parameters_of(bootstrapping=bootstrapping)) == [
        ("bootstrapping", "all 4 steps are bootstrapped: regions are never harmonised")
    ]


@pytest.mark.parametrize("boxes", [[], [(0, 0, 0, 0)], [(0, 0, 64, 64)]], ids=["none", "empty", "the whole picture"])
def test_bootstrapping_to_the_end_is_no_matter_where_no_region_is_bootstrapped(boxes: list[Box]) -> None:
    parameters = parameters_of(boxes=boxes, bootstrapping=20, num_inference_steps=5)
    assert "bootstrapping" not in {field for field, _ in warnings_of(parameters)}


def test_what_a_request_was_taken_for_is_told() -> None:
    remark = ("guidance_scale", "0.5 is painted as 1, without guidance")
    assert warnings_of(parameters_of(warnings=(remark,))) == [remark]


def test_covered_background_is_warned_of() -> None:
    assert warnings_of(parameters_of(boxes=[LEFT, (0, 32, 64, 64)])) == [
        ("prompt[0]", "regions cover the whole picture; the background's prompt has no effect")
    ]


def test_cut_prompt_is_warned_of() -> None:
    parameters = parameters_of(negative_prompt=("a " * MAX_LENGTH, ""))
    assert warnings_of(parameters) == [("negative_prompt[0]", "cut at 8 tokens; left out: 'a a '")]


def test_report_has_the_rows_that_were_asked_and_what_the_picture_depends_on() -> None:
    networks = Networks()
    parameters = parameters_of(width=100, boxes=[LEFT, RIGHT])
    began = time.perf_counter()
    report = picture_of(parameters, networks).report
    taken = time.perf_counter() - began
    assert report["unet_rows"] == networks.rows
    assert report["unet_rows_reference"] == 2 * 3 * 3 * 4  # [uncond; cond], views, regions, steps
    assert report["unet_rows"] < report["unet_rows_reference"]
    assert report["parameters"] == parameters.summary()
    assert report["checkpoint"] == {"name": "tiny", "digest": "0123"}
    seconds = report["seconds"]
    assert set(seconds) == {"text_encoder", "unet", "vae_decoder", "orchestration", "total"}
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=1e-3)
    assert all(0 <= each <= taken + 1e-4 for each in seconds.values())


@pytest.mark.parametrize(("bootstrapping", "rows"), [(0, [3, 3, 3, 3]), (2, [4, 4, 3, 3]), (9, [4, 4, 4, 4])])
def test_as_many_steps_are_bootstrapped_as_were_asked_for(bootstrapping: int, rows: list[int]) -> None:
    """Then the region sees an input of its own, and shares no unconditional row with the background."""
    networks = Networks()
    report = picture_of(parameters_of(bootstrapping=bootstrapping), networks).report
    rows_of_step = [0] * 4
    for step, call in zip(networks.steps, networks.calls, strict=True):
        rows_of_step[step] += len(call)
    assert rows_of_step == rows
    assert report["unet_rows"] == sum(rows)


def test_calls_are_no_larger_than_the_unet_takes() -> None:
    networks = Networks()
    picture_of(parameters_of(width=100, boxes=[LEFT, RIGHT]), networks)
    assert max(len(call.sample) for call in networks.calls) == CHECKPOINT.unet_max_batch_size


def test_equal_texts_are_encoded_once() -> None:
    class Counting(Networks):
        async def encode(self, encoder: TextEncoder, input_ids: npt.NDArray[np.int32]) -> dict[str, Tensor]:
            self.texts = len(input_ids)
            return await super().encode(encoder, input_ids)

    networks = Counting()
    picture_of(parameters_of(prompt=("moon", "Moon"), negative_prompt=("", "")), networks)
    assert networks.texts == 2


def first_background_sample(parameters: Parameters) -> Tensor:
    """What the background's row sees before any step: the initial canvas."""
    networks = Networks()
    picture_of(parameters, networks)
    return networks.calls[0].sample[0]


def test_fault_6_bootstrapping_does_not_change_the_noise_of_a_seed() -> None:
    """The seed alone fixes it."""
    noise = first_background_sample(parameters_of(bootstrapping=0))
    for changes in ({"bootstrapping": 3}, {"num_inference_steps": 9}, {"guidance_scale": 1.0}, {"boxes": [RIGHT]}):
        assert torch.equal(first_background_sample(parameters_of(**changes)), noise)
    assert not torch.equal(first_background_sample(parameters_of(seed=12)), noise)


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_fault_6_bootstrapping_does_not_change_the_noise_that_a_sampler_adds(scheduler: str) -> None:
    background_alone = [parameters_of(boxes=[], scheduler=scheduler, bootstrapping=steps) for steps in (0, 3)]
    without, with_bootstrapping = (picture_of(parameters).latents for parameters in background_alone)
    assert torch.equal(without, with_bootstrapping)


def test_noise_of_a_seed_is_that_of_torch_on_the_cpu() -> None:
    expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(11))[0]
    assert torch.equal(first_background_sample(parameters_of()), expected)


def test_first_noise_of_a_seed_is_what_it_was() -> None:
    """Pinned: a picture's parameters keep their meaning from release to release."""
    first = first_background_sample(parameters_of(seed=0))[0, 0, :4]
    torch.testing.assert_close(first, torch.tensor([-1.12584, -1.15236, -0.25058, -0.43388]), rtol=0, atol=1e-4)


def test_first_backgrounds_of_a_seed_are_what_they_were() -> None:
    """Pinned as the noise is; they are drawn apart from it."""
    generator = torch.Generator().manual_seed(BACKGROUND_STREAM)
    drawn = draw_bootstrapping(torch.zeros(64, 1), steps=2, views=1, regions=3, generator=generator)
    assert drawn.choices.flatten().tolist() == [34, 4, 3, 48, 44, 17]


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_every_seed_paints(seed: int) -> None:
    picture = picture_of(parameters_of(seed=seed))
    assert picture.report["parameters"]["seed"] == seed
    assert torch.isfinite(picture.latents).all()


def test_fault_5_no_bootstrapping_no_region_and_one_step_do_not_crash() -> None:
    for parameters in (
        parameters_of(bootstrapping=0),
        parameters_of(boxes=[]),
        parameters_of(boxes=[], bootstrapping=0),
        parameters_of(num_inference_steps=1),
    ):
        assert torch.isfinite(picture_of(parameters).latents).all()


def test_steps_beyond_the_sampler_are_refused_before_any_network_is_asked() -> None:
    networks = Networks()
    with pytest.raises(InvalidRequestError, match="num_inference_steps: expected 1 to 50 for scheduler lcm"):
        picture_of(parameters_of(scheduler="lcm", num_inference_steps=51), networks)
    assert networks.calls == []


def test_more_views_than_can_be_planned_in_time_are_refused() -> None:
    networks = Networks()
    with pytest.raises(InvalidRequestError, match=r"view_stride: expected at most 25000 pairs .* a larger stride"):
        picture_of(parameters_of(width=2048, height=2048, view_stride=1), networks)
    assert networks.calls == []


def test_as_many_pairs_of_view_and_region_as_may_be_are_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = parameters_of(width=100)  # three views of two regions
    monkeypatch.setattr("pipeline.MAX_PAIRS", 6)
    assert picture_of(parameters).image.shape == (64, 100, 3)
    monkeypatch.setattr("pipeline.MAX_PAIRS", 5)
    with pytest.raises(InvalidRequestError, match="found 3 views of 2 regions"):
        picture_of(parameters)


CROWD = [
    parameters_of(scheduler=scheduler, seed=seed, width=width, num_inference_steps=steps, bootstrapping=bootstrapping)
    for scheduler, seed, width, steps, bootstrapping in [
        ("ddim", 1, 64, 4, 2),
        ("ddim", 1, 64, 4, 0),
        ("ddim", 2, 131, 3, 2),
        ("euler_a", 1, 64, 5, 1),
        ("euler_a", 1, 64, 5, 5),
        ("dpmpp_2m_karras", 3, 99, 6, 3),
        ("unipc", 1, 64, 4, 2),
        ("lcm", 4, 100, 3, 1),
    ]
]


@pytest.mark.parametrize("order", [1, -1])
def test_fault_12_requests_at_once_share_neither_scheduler_nor_random_numbers(order: int) -> None:
    """Each gives the bits that it gives alone."""
    crowd = CROWD[::order]
    finished: list[int] = []

    async def together(networks: Networks) -> list[Picture]:
        async def one(index: int) -> Picture:
            picture = await painted(crowd[index], networks)
            finished.append(index)
            return picture

        return await asyncio.gather(*(one(index) for index in range(len(crowd))))

    networks = Networks()
    for parameters, picture in zip(crowd, asyncio.run(together(networks)), strict=True):
        alone = picture_of(parameters)
        assert torch.equal(picture.latents, alone.latents)
        assert np.array_equal(picture.image, alone.image)
    assert finished != sorted(finished)  # they did run at once


@pytest.mark.parametrize("scheduler", sorted(SAMPLERS))
def test_request_painted_again_gives_the_same_bits(scheduler: str) -> None:
    parameters = parameters_of(scheduler=scheduler)
    first, again = picture_of(parameters), picture_of(parameters)
    assert torch.equal(first.latents, again.latents)
    assert np.array_equal(first.image, again.image)
