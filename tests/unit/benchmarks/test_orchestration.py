"""What `make bench-orchestration` moves to and fro has the size of the published models' tensors."""

import pytest
from transformers import CLIPTextConfig

from multsd_export.rehearsal.configs import PUBLISHED
from tests.benchmarks.gpu_cases import Size, subjects
from tests.benchmarks.orchestration_run import SimulatedModel, simulated_models


def test_the_requests_are_those_of_the_benchmark_on_a_gpu() -> None:
    assert tuple(model.subject for model in simulated_models()) == subjects(Size.TRUE)


@pytest.mark.parametrize("model", simulated_models(), ids=lambda model: model.subject.name)
def test_windows_and_texts_are_those_of_the_published_model(model: SimulatedModel) -> None:
    published, unet = PUBLISHED[model.subject.family], model.structure.unet
    widths = [encoder["hidden_size"] for encoder in model.structure.text_encoders]
    tokens = [CLIPTextConfig(**encoder).max_position_embeddings for encoder in model.structure.text_encoders]
    pooled = model.structure.text_encoders[-1]["projection_dim"]
    assert model.structure.window == unet["sample_size"] == model.subject.window
    assert tokens == [encoder["max_position_embeddings"] for encoder in published.text_encoders]
    assert widths == [encoder["hidden_size"] for encoder in published.text_encoders]
    assert unet["cross_attention_dim"] == sum(widths) == published.unet["cross_attention_dim"]
    if model.subject.family == "sdxl":
        sizes = 6 * published.unet["addition_time_embed_dim"]
        assert pooled == published.unet["projection_class_embeddings_input_dim"] - sizes
