"""Serve one network of a checkpoint with torch in Triton's Python backend.

An export copies this file as `1/model.py` beside the network's weights in `1/weights`. Parameters of the model's
configuration say what it is and how it runs: `module` (a name of `modules`), `precision`, `execution`, `channels_last`.
The instance group says where. Tensors come from the processor's memory and go back there.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

# Threads that spin while they wait take the processor from those that they wait for: on two busy cores a UNet of two
# threads was ten times slower with it. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

from cuda_graphs import Forward, autotune, capture_all
from rows import Tensors
from triton_requests import Model, answer, read_model

if TYPE_CHECKING:
    from multsd_export import modules
else:
    import modules

WEIGHTS = "weights"  # folder beside this file
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
BELOW = {"timestep": 1000, "time_ids": 2048}  # of inputs whose values are integers; others are normal
EXECUTIONS = {name: name for name in ("eager", "cuda-graphs", "compile", "autotune")}
SWITCH = {"true": True, "false": False}
Choice = TypeVar("Choice")


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the weights."""
        self.model = read_model(args)
        self.device = torch.device("cpu" if self.model.gpu is None else f"cuda:{self.model.gpu}")
        if self.model.gpu is not None:
            torch.cuda.set_device(self.device)
        torch.set_num_threads(self.model.threads)
        # What is in full precision is there because it needs it.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.forward = make_forward(load_module(self.model, self.device), self.model, self.device)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        return answer(requests, self.model, self._run)

    def _run(self, tensors: Tensors) -> Tensors:
        try:
            return self._compute(tensors)
        except Exception:
            if self.device.type == "cuda":
                end_where_context_is_lost(self.model.name)
            raise

    @torch.no_grad()
    def _compute(self, tensors: Tensors) -> Tensors:
        result = self.forward(*(torch.from_numpy(tensors[name]).to(self.device) for name in self.model.inputs))
        outputs = [result] if isinstance(result, Tensor) else list(result)
        return {name: each.cpu().numpy() for name, each in zip(self.model.outputs, outputs, strict=True)}


def end_where_context_is_lost(name: str) -> None:
    """End this process where a kernel's error has taken the GPU's context with it, as an illegal address does.

    No call would succeed in it any more, while Triton calls the model ready. Of a process that has ended the probes
    know, and have Triton begin anew.
    """
    try:
        torch.cuda.synchronize()  # tells of such errors for ever, and of no others
    except RuntimeError as error:
        sys.stderr.write(f"{name}: the GPU's context is lost, the process ends: {' '.join(str(error).split())[:300]}\n")
        sys.stderr.flush()
        os._exit(1)  # what is raised Triton would answer, and go on


def load_module(model: Model, device: torch.device) -> modules.Wrapper:
    """The network in its precision, on its device, convolutions in the memory format that the parameters say.

    Raises ValueError where one of the parameters is missing or unknown.
    """
    wrapper = chosen(model, "module", modules.WRAPPERS)
    dtype = chosen(model, "precision", DTYPES)
    channels_last = chosen(model, "channels_last", SWITCH)
    module = wrapper(modules.read_model(wrapper.model_class, model.folder / WEIGHTS, dtype)).eval().to(device)
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its annotations lack it
    return module


def chosen(model: Model, name: str, choices: Mapping[str, Choice]) -> Choice:
    """What a parameter of the model's configuration stands for. Raises ValueError for another value, or none."""
    value = model.parameters.get(name)
    if value is None or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.")
    return choices[value]


def make_forward(module: modules.Wrapper, model: Model, device: torch.device) -> Forward:
    """The network as a function: called as it is, replayed from CUDA graphs, compiled, or what of the first two is
    measured to be faster, in either memory format.

    A CUDA graph has static shapes, so one is captured for every number of rows; compiled code takes several of them.
    """
    execution = chosen(model, "execution", EXECUTIONS)
    if execution == "compile":
        return compile_all(module, draw_inputs(module, model, device, seed=0))
    if execution == "cuda-graphs":
        return capture_all(module, draw_inputs(module, model, device, seed=0))
    if execution == "autotune":

        def tell(line: str) -> None:
            pb_utils.Logger.log_info(f"{model.name}: {line}")

        largest, others = (draw_inputs(module, model, device, seed=seed) for seed in (0, 1))
        return autotune(module, largest, others, tell)
    return module


@torch.no_grad()
def compile_all(module: modules.Wrapper, largest: Sequence[Tensor]) -> Forward:
    """Compiled code for every number of rows up to that of the largest inputs.

    A number that the code so far does not take would be compiled within a request, which is minutes.
    """
    forward: Forward = torch.compile(module, dynamic=True)
    for rows in range(len(largest[0]), 0, -1):
        forward(*(tensor[:rows] for tensor in largest))
    return forward


def draw_inputs(module: modules.Wrapper, model: Model, device: torch.device, *, seed: int) -> list[Tensor]:
    """Inputs like those that come, of as many rows as the model takes.

    Raises ValueError where their shapes are not static.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for name, shape in zip(model.inputs, model.shapes, strict=True):
        if any(dim < 0 for dim in shape):
            raise ValueError(f"execution: expected static shapes, {name} has {list(shape)}.")
        size = (model.max_rows, *shape)
        if name == "input_ids":  # one that a vocabulary lacks would end the GPU's context, and with it the process
            drawn = torch.randint(module.model.config.vocab_size, size, generator=generator, dtype=torch.int32)
        elif name in BELOW:
            drawn = torch.randint(BELOW[name], size, generator=generator).float()
        else:
            drawn = torch.randn(size, generator=generator)
        inputs.append(drawn.to(device))
    return inputs
