"""From ONNX files to TensorRT engines, on the machine that serves them.

An engine belongs to one TensorRT version and one kind of GPU (`machine`, `record`). It is built for ranges of input
shapes (`shapes`, `builder`, `progress`) and kept like the ONNX file that it is made from (`artefact`). Only `builder`
and `machine` import TensorRT, when called.
"""
