"""From ONNX files to TensorRT engines, on the machine that serves them.

An engine belongs to one TensorRT version and one kind of GPU (`machine`, `record`). It is built for ranges of input
shapes (`shapes`, `builder`, `progress`), kept like the ONNX file that it is made from (`artefact`), and served with a
configuration that says what it was built for (`serving`). Only `builder` and `machine` import TensorRT, when called.
"""
