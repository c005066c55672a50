"""Profiles: what the networks run in. A profile adds settings and code to the committed contracts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

PACKAGE = Path(__file__).parent
RUNNERS = PACKAGE / "runners"


class Precision(StrEnum):
    """What a network's weights and activations are; the tensors that go in and out are float32 in both."""

    FP32 = "fp32"
    FP16 = "fp16"


class ProfileName(StrEnum):
    """The names of the profiles."""

    CPU = "cpu"
    TENSORRT = "tensorrt"
    TORCH = "torch"


class Device(StrEnum):
    """What networks run on."""

    CPU = "cpu"
    GPU = "gpu"


class Served(StrEnum):
    """What of a network a profile serves."""

    ONNX = "onnx"
    ENGINE = "engine"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class Runner:
    """Code that runs a network in Triton's Python backend."""

    model: Path  # copied as `1/model.py` of every network
    siblings: Sequence[Path]  # copied beside it under their own names


@dataclass(frozen=True)
class Profile:
    """Settings in protobuf's text format, merged into the contracts, and the code that runs the networks."""

    name: ProfileName
    device: Device
    served: Served
    precision: Precision  # of its networks, unless an export asks for another
    models: Mapping[str, str]  # model of the repository -> its settings
    other_models: str  # settings of every model that is not named
    runner: Runner | None  # None: Triton's own backend runs engines
    # Other ways to run the same repository, `tritonserver --model-config-name=NAME`: name -> model -> further settings.
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def settings(self, model: str) -> str:
        """The settings of one model of the repository."""
        return self.models.get(model, self.other_models)


def _parameters(**values: str) -> str:
    return "".join(f'parameters {{ key: "{key}" value {{ string_value: "{values[key]}" }} }}' for key in values)


CUDA_GRAPHS = "cuda_graphs"  # the variant that profiles of GPUs have
# Each instance serves one blocking request after the other; the work is done elsewhere.
UNARY = "instance_group { kind: KIND_CPU count: 4 }"
OTHER_MODELS = "instance_group { kind: KIND_CPU count: 1 }"
ORCHESTRATOR_OF_GPU = OTHER_MODELS + _parameters(unet_calls_ahead="1")


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
    device=Device.CPU,
    served=Served.ONNX,
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
    runner=Runner(RUNNERS / "onnxruntime_runner.py", (RUNNERS / "rows.py", RUNNERS / "triton_requests.py")),
)


# How requests wait for a network on a GPU is the repository's own: whatever waits when the network comes free goes out
# together, without a delay, the largest batch preferred (`serving`). There is no queue policy: with any bound of a
# queue's length or time Triton (2.51, and its source of June 2026) looks at what waits only half a second later, since
# its batcher is woken before the instance counts as free (triton-inference-server/server issue 8870 is about the same
# counter), and two calls of the UNet take half a second and more. The orchestrator bounds what it has under way by
# itself, and how long it waits for an answer.


def _tensorrt() -> str:
    """A network's engine on the first GPU, by optimisation profile 0, the only one that it is built with.

    Without a GPU named Triton makes an instance on every one: more than `unet_calls`, and GPUs of another kind.
    """
    # CUDA graphs stay off: with them Triton has returned a previous request's result (triton-inference-server/server
    # issue 8550), and they are captured at the profile's best shape only, which a VAE's pictures seldom have.
    return """
        backend: "tensorrt"
        platform: "tensorrt_plan"
        default_model_filename: "model.plan"
        instance_group { kind: KIND_GPU count: 1 gpus: 0 profile: "0" }
        optimization { cuda { graphs: false } }
    """


ENGINE_GRAPHS = "optimization { cuda { graphs: true } }"

TENSORRT = Profile(
    name=ProfileName.TENSORRT,
    device=Device.GPU,
    served=Served.ENGINE,
    precision=Precision.FP16,
    models={
        "text_encoder": _tensorrt(),
        "text_encoder_2": _tensorrt(),
        "unet": _tensorrt(),
        "vae_decoder": _tensorrt(),
        "vae_encoder": _tensorrt(),
        "multidiffusion": ORCHESTRATOR_OF_GPU,
        "multidiffusion_unary": UNARY,
    },
    other_models=OTHER_MODELS,
    runner=None,
    variants={CUDA_GRAPHS: dict.fromkeys(("text_encoder", "text_encoder_2", "unet"), ENGINE_GRAPHS)},
)


def torch_profile(device: Device = Device.GPU) -> Profile:
    """Torch modules on the first GPU in half precision, or on the processor in full."""
    gpu = device is Device.GPU
    return Profile(
        name=ProfileName.TORCH,
        device=device,
        served=Served.WEIGHTS,
        precision=Precision.FP16 if gpu else Precision.FP32,
        models={
            "text_encoder": _torch("text_encoder", device),
            "text_encoder_2": _torch("text_encoder_2", device),
            "unet": _torch("unet", device),
            "vae_decoder": _torch("vae_decoder", device),
            "vae_encoder": _torch("vae_encoder", device),
            "multidiffusion": ORCHESTRATOR_OF_GPU if gpu else OTHER_MODELS,
            "multidiffusion_unary": UNARY,
        },
        other_models=OTHER_MODELS,
        runner=Runner(
            RUNNERS / "torch_runner.py",
            (
                RUNNERS / "cuda_graphs.py",
                RUNNERS / "rows.py",
                RUNNERS / "triton_requests.py",
                PACKAGE / "modules.py",
            ),
        ),
        variants=TORCH_VARIANTS if gpu else {},
    )


STATIC = ("text_encoder", "text_encoder_2", "unet")  # networks whose rows have one shape, as CUDA graphs need it


def _torch(model: str, device: Device) -> str:
    """A network's torch module. On a GPU it runs as is fastest there; a VAE's pictures have too many sizes for that."""
    gpu = device is Device.GPU
    group = "kind: KIND_GPU count: 1 gpus: 0" if gpu else "kind: KIND_CPU count: 1"
    execution = "autotune" if gpu and model in STATIC else "eager"
    return f"""
        backend: "python"
        instance_group {{ {group} }}
        {_parameters(execution=execution, channels_last="false", intra_op_threads="0")}
    """


def _torch_variant(execution: str, *, channels_last: bool) -> dict[str, str]:
    """One way for every network that can run so; only the UNet is worth compiling."""
    eager = dict.fromkeys(STATIC, _parameters(execution="eager"))
    models = {"eager": (), "cuda-graphs": STATIC, "compile": ("unet",)}[execution]
    settings = eager | dict.fromkeys(models, _parameters(execution=execution))
    for model in ("unet", "vae_decoder", "vae_encoder") if channels_last else ():
        settings[model] = settings.get(model, "") + _parameters(channels_last="true")
    return settings


TORCH_VARIANTS = {
    "eager": _torch_variant("eager", channels_last=False),
    CUDA_GRAPHS: _torch_variant("cuda-graphs", channels_last=False),
    "compile": _torch_variant("compile", channels_last=False),
    "channels_last": _torch_variant("eager", channels_last=True),
    "channels_last_cuda_graphs": _torch_variant("cuda-graphs", channels_last=True),
    "channels_last_compile": _torch_variant("compile", channels_last=True),
}

PROFILES = {profile.name: profile for profile in (CPU, TENSORRT, torch_profile())}
