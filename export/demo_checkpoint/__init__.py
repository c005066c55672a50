"""A small latent diffusion checkpoint trained on pictures that code draws, so that a clone can paint by itself."""
