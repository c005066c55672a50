"""The checkpoint's networks in torch, which a served repository is held to."""

import gc
from collections.abc import Sequence

import torch

from multsd_export.errors import TorchError
from multsd_export.networks import DTYPES, Inputs, Network
from multsd_export.profiles import Device

# Of a VAE at its largest tile, 1024 x 1024 pixels in float32, beside the weights; of a UNet's few rows it is less.
ACTIVATION_BYTES = 12 * 2**30


class Reference:
    """Every network with the weights that the repository has, computed with in float32.

    One at a time is on the device: the memory beside it is Triton's.
    """

    def __init__(self, networks: Sequence[Network], device: torch.device) -> None:
        self.networks = {network.name: network for network in networks}
        self.device = device
        self._loaded: tuple[str, torch.nn.Module] | None = None

    def run(self, name: str, *inputs: torch.Tensor) -> Inputs:
        """A network's outputs, on the processor.

        Raises:
            TorchError: its device has too little memory.
        """
        try:
            module = self._module(name)
            with torch.no_grad():
                result = module(*(each.to(self.device) for each in inputs))
        except torch.OutOfMemoryError as error:
            self.release()
            place = "; --device cpu takes the processor" if self.device.type != "cpu" else ""
            raise TorchError(f"torch has too little memory on {self.device} for {name}{place}.") from error
        tensors = (result,) if isinstance(result, torch.Tensor) else tuple(result)
        return tuple(each.cpu() for each in tensors)

    def release(self) -> None:
        """Give the memory of the network that was used last back."""
        self._loaded = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _module(self, name: str) -> torch.nn.Module:
        if self._loaded is None or self._loaded[0] != name:
            self.release()
            network = self.networks[name]
            self._loaded = name, network.load(DTYPES[network.precision]).float().to(self.device)
        return self._loaded[1]


def choose_device(wanted: Device | None, parameters: int) -> torch.device:
    """Where torch computes; products in full float32, for it is the reference.

    Args:
        wanted: left out, a GPU where torch sees one with enough free memory.
        parameters: of the largest network.

    Raises:
        TorchError: a GPU is wanted and there is none.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    seen = torch.cuda.is_available()
    if wanted is Device.GPU and not seen:
        raise TorchError("torch sees no GPU here; leave --device out, or name cpu.")
    if wanted is Device.CPU or not seen:
        return torch.device("cpu")
    needed = parameters * torch.float32.itemsize + ACTIVATION_BYTES
    roomy = wanted is Device.GPU or torch.cuda.mem_get_info()[0] >= needed
    return torch.device("cuda" if roomy else "cpu")
