"""From a checkpoint in diffusers layout to a model repository that Triton can load.

The steps, one module each: read the checkpoint (`checkpoint`), export its networks to ONNX (`networks`, `onnx_export`)
and compare them with torch (`parity`), encode the palette of constant-colour grounds (`palette`), hold everything to
the committed tensor contracts (`contract`), and compose the repository (`compose`). `pipeline` runs them in order and
skips what is already there.
"""
