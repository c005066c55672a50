"""The HTTP gateway: translates the `multsd` JSON to the `multidiffusion` model in Triton, bounds it, reports on it."""
