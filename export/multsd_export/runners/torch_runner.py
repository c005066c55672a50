"""Serve one network of a checkpoint with torch in Triton's Python backend.

An export copies this file as `1/model.py` beside the network's weights in `1/weights`. Parameters of the model's
configuration say what it is and how it runs: `module` (a name of `modules`), `precision`, `execution`, `channels_last`.
The instance group says where. Tensors come from the processor's memory and go back there.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

# Threads that spin while they wait take the processor from those that they wait for: on two busy cores a UNet of two
# threads was ten times slower with it. OpenMP reads this when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch._dynamo import config as dynamo

from rows import Tensors
from triton_requests import Model, answer, read_model

if TYPE_CHECKING:
    from multsd_export import modules
else:
    import modules

WEIGHTS = "weights"  # folder beside this file
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
Forward = Callable[..., Any]  # tensors -> a tensor or a tuple of them


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the weights."""
        self.model = read_model(args)
        self.device = torch.device("cpu" if self.model.gpu is None else f"cuda:{self.model.gpu}")
        torch.set_num_threads(self.model.threads)
        # What is in full precision is there because it needs it.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.forward = make_forward(load_module(self.model, self.device), self.model)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        return answer(requests, self.model, self._run)

    def _run(self, tensors: Tensors) -> Tensors:
        with torch.no_grad():
            result = self.forward(*(torch.from_numpy(tensors[name]).to(self.device) for name in self.model.inputs))
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        return {name: each.cpu().numpy() for name, each in zip(self.model.outputs, outputs, strict=True)}


def load_module(model: Model, device: torch.device) -> torch.nn.Module:
    """The network in its precision, on its device, convolutions in the memory format that the parameters say."""
    wrapper = modules.WRAPPERS[model.parameters["module"]]
    loaded = modules.read_model(wrapper.model_class, model.folder / WEIGHTS, DTYPES[model.parameters["precision"]])
    module = wrapper(loaded).eval().to(device)
    if model.parameters["channels_last"] == "true":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its annotations lack it
    return module


def make_forward(module: torch.nn.Module, model: Model) -> Forward:
    """The network as a function: called as it is, replayed from CUDA graphs, or compiled.

    Both of the latter are torch.compile's. A CUDA graph has static shapes, so one is captured for every batch size when
    it first comes; compiled code takes every batch size.
    """
    execution = model.parameters["execution"]
    if execution == "eager":
        return module
    dynamo.recompile_limit = max(dynamo.recompile_limit, model.max_rows + 1)  # beyond it torch goes back to eager
    if execution == "cuda-graphs":
        return torch.compile(module, backend="cudagraphs", dynamic=False)
    if execution == "compile":
        return torch.compile(module, dynamic=True)
    raise ValueError(f"execution: expected eager, cuda-graphs or compile, found {execution!r}.")
