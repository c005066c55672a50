"""Whether a running Triton computes what the checkpoint does in torch, and how fast: `multsd-export verify`.

`server` calls the networks one by one, `reference` computes them in torch, `networks` holds each to it, `picture` holds
a whole picture to the method on torch, `report` says pass or fail, `run` does all of it in order.
"""
