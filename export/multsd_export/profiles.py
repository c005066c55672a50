"""Profiles: what the networks run in. A profile adds settings and a runner to the committed contracts."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

RUNNERS = Path(__file__).parent / "runners"


class Precision(StrEnum):
    """What a graph's weights and activations are; the tensors that go in and out are float32 in both."""

    FP32 = "fp32"
    FP16 = "fp16"


class ProfileName(StrEnum):
    """The names of the profiles."""

    CPU = "cpu"


@dataclass(frozen=True)
class Profile:
    """Settings in protobuf's text format, merged into the contracts, and the file that runs the networks."""

    name: ProfileName
    precision: Precision  # of its graphs, unless an export asks for another
    models: Mapping[str, str]  # model of the repository -> its settings
    other_models: str  # settings of every model that is not named
    runner: Path  # copied as `1/model.py` of every network

    def settings(self, model: str) -> str:
        """The settings of one model of the repository."""
        return self.models.get(model, self.other_models)


def _onnxruntime(*, release_memory: bool) -> str:
    """A network in the Python backend. `intra_op_threads` 0: as many threads as the process may use cores."""
    return f"""
        backend: "python"
        instance_group {{ kind: KIND_CPU count: 1 }}
        parameters {{ key: "intra_op_threads" value {{ string_value: "0" }} }}
        parameters {{ key: "release_memory" value {{ string_value: "{str(release_memory).lower()}" }} }}
    """


CPU = Profile(
    name=ProfileName.CPU,
    precision=Precision.FP32,
    # A VAE's memory grows with the picture, so it is given back after every run; rows of the others are all alike.
    models={
        "text_encoder": _onnxruntime(release_memory=False),
        "text_encoder_2": _onnxruntime(release_memory=False),
        "unet": _onnxruntime(release_memory=False),
        "vae_decoder": _onnxruntime(release_memory=True),
        "vae_encoder": _onnxruntime(release_memory=True),
        # Each instance serves one blocking request after the other; the work is done elsewhere.
        "multidiffusion_unary": "instance_group { kind: KIND_CPU count: 4 }",
    },
    other_models="instance_group { kind: KIND_CPU count: 1 }",
    runner=RUNNERS / "onnxruntime_runner.py",
)

PROFILES = {profile.name: profile for profile in (CPU,)}
