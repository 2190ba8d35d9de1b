"""Denoising diffusion: the mathematics, the network, the data and the training loop. No Ray, no MLflow."""
