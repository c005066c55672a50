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
    TENSORRT = "tensorrt"


@dataclass(frozen=True)
class Profile:
    """Settings in protobuf's text format, merged into the contracts, and the file that runs the networks."""

    name: ProfileName
    precision: Precision  # of its graphs, unless an export asks for another
    models: Mapping[str, str]  # model of the repository -> its settings
    other_models: str  # settings of every model that is not named
    runner: Path | None  # copied as `1/model.py` of every network; None: Triton's own backend runs engines

    @property
    def engines(self) -> bool:
        """Whether the networks are TensorRT engines."""
        return self.runner is None

    def settings(self, model: str) -> str:
        """The settings of one model of the repository."""
        return self.models.get(model, self.other_models)


# Each instance serves one blocking request after the other; the work is done elsewhere.
UNARY = "instance_group { kind: KIND_CPU count: 4 }"
OTHER_MODELS = "instance_group { kind: KIND_CPU count: 1 }"


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
        "multidiffusion_unary": UNARY,
    },
    other_models=OTHER_MODELS,
    runner=RUNNERS / "onnxruntime_runner.py",
)


def _tensorrt(*, max_queue_size: int, preferred_batch_size: int | None = None) -> str:
    """A network's engine on the first GPU, by optimisation profile 0, the only one that it is built with.

    Without a GPU named Triton makes an instance on every one: more than `unet_calls`, and GPUs of another kind.

    preferred_batch_size: the one that its kernels are chosen for. There is no queue delay: whatever waits when the
    engine comes free goes out together.
    """
    preferred = f"preferred_batch_size: {preferred_batch_size}" if preferred_batch_size else ""
    # CUDA graphs stay off: with them Triton has returned a previous request's result (triton-inference-server/server
    # issue 8550), and they are captured at the profile's best shape only, which a VAE's pictures seldom have.
    # Requests beyond the queue, or a minute in it, get UNAVAILABLE: the orchestrator bounds its own, so these are of
    # clients that call a network directly, or a GPU that hangs.
    return f"""
        backend: "tensorrt"
        platform: "tensorrt_plan"
        default_model_filename: "model.plan"
        instance_group {{ kind: KIND_GPU count: 1 gpus: 0 profile: "0" }}
        dynamic_batching {{
          {preferred}
          max_queue_delay_microseconds: 0
          default_queue_policy {{
            timeout_action: REJECT
            default_timeout_microseconds: 60000000
            max_queue_size: {max_queue_size}
          }}
        }}
        optimization {{ cuda {{ graphs: false }} }}
    """


TENSORRT = Profile(
    name=ProfileName.TENSORRT,
    precision=Precision.FP16,
    models={
        # A request asks for each of its texts by itself: 8 requests of 33 regions are 528 prompts and negative prompts.
        "text_encoder": _tensorrt(max_queue_size=1024, preferred_batch_size=16),
        "text_encoder_2": _tensorrt(max_queue_size=1024, preferred_batch_size=16),
        "unet": _tensorrt(max_queue_size=64, preferred_batch_size=16),
        "vae_decoder": _tensorrt(max_queue_size=64),
        "vae_encoder": _tensorrt(max_queue_size=64),
        "multidiffusion_unary": UNARY,
    },
    other_models=OTHER_MODELS,
    runner=None,
)

PROFILES = {profile.name: profile for profile in (CPU, TENSORRT)}
