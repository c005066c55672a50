"""ONNX Runtime without its telemetry; the project imports it from here.

Its wheels for Linux write a device id below HOME and send events to their maker, unless they are told not to before
they are loaded.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
