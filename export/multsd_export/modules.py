"""The networks in torch as every profile sees them: float32 in and out, whatever they compute in.

B rows, L tokens, D embedding, P pooled embedding, h w latent size in cells. The `torch` profile's models have a copy of
this file beside them, so it imports nothing of this package.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection


class MissingWeightsError(ValueError):
    """A checkpoint's folder lacks weights; both libraries fill them with random numbers and only log it."""


class Wrapper(torch.nn.Module):
    """One of a library's models, with the tensors of a contract around it."""

    model_class: ClassVar[Any]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class TextEncoder(Wrapper):
    """input_ids: (B, L) int32 -> last_hidden_state: (B, L, D) float32."""

    model_class = CLIPTextModel

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden.float()


class PenultimateTextEncoder(Wrapper):
    """input_ids: (B, L) int32 -> the hidden states before the last layer, without the final norm: (B, L, D) float32."""

    model_class = CLIPTextModel

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids=input_ids, output_hidden_states=True).hidden_states[-2]
        return hidden.float()


class ProjectingTextEncoder(Wrapper):
    """As PenultimateTextEncoder, and text_embeds: (B, P) float32, the projected pooled output."""

    model_class = CLIPTextModelWithProjection

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.model(input_ids=input_ids, output_hidden_states=True)
        return result.hidden_states[-2].float(), result.text_embeds.float()


class Unet(Wrapper):
    """sample: (B, 4, h, w), timestep: (B), encoder_hidden_states: (B, L, D) -> out_sample: (B, 4, h, w), float32."""

    model_class = UNet2DConditionModel

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        dtype = self.model.dtype
        noise_pred: torch.Tensor = self.model(
            sample.to(dtype), timestep, encoder_hidden_states.to(dtype), return_dict=False
        )[0]
        return noise_pred.float()


class SdxlUnet(Wrapper):
    """As Unet, and text_embeds: (B, P), time_ids: (B, 6) float32, in pixels."""

    model_class = UNet2DConditionModel

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        dtype = self.model.dtype
        # Sizes and timesteps stay float32: above 2048 float16 does not hold every integer. So does text_embeds, which
        # the network joins with them before it casts both.
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        noise_pred: torch.Tensor = self.model(
            sample.to(dtype), timestep, encoder_hidden_states.to(dtype), added_cond_kwargs=added, return_dict=False
        )[0]
        return noise_pred.float()


class VaeDecoder(Wrapper):
    """latent_sample: (B, 4, h, w), already divided by the scaling factor -> sample: (B, 3, 8h, 8w), about [-1, 1]."""

    model_class = AutoencoderKL

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        sample: torch.Tensor = self.model.decode(latent_sample.to(self.model.dtype), return_dict=False)[0]
        return sample.float()


class VaeEncoder(Wrapper):
    """sample: (B, 3, 8h, 8w) in [-1, 1] -> latent_sample: (B, 4, h, w), the posterior's mean, not yet scaled."""

    model_class = AutoencoderKL

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = self.model.encode(sample.to(self.model.dtype), return_dict=False)[0].mean
        return mean.float()


WRAPPERS: dict[str, type[Wrapper]] = {
    wrapper.__name__: wrapper
    for wrapper in (
        TextEncoder,
        PenultimateTextEncoder,
        ProjectingTextEncoder,
        Unet,
        SdxlUnet,
        VaeDecoder,
        VaeEncoder,
    )
}


def read_model(
    model_class: Any, folder: Path, dtype: torch.dtype, *, variant: str | None = None, **options: Any
) -> Any:
    """A library's model from safetensors alone, without the network.

    Raises:
        MissingWeightsError: some are missing.
        OSError, RuntimeError, ValueError, SafetensorError: the libraries' own, for files that cannot be read.
    """
    clip = model_class in (CLIPTextModel, CLIPTextModelWithProjection)
    model, info = model_class.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        variant=variant,
        **{"dtype" if clip else "torch_dtype": dtype},
        **options,
    )
    missing = sorted(str(name) for name in info["missing_keys"])
    if missing:
        raise MissingWeightsError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    return model
