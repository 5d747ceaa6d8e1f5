"""One small adapter for each family of models: what the network is told, and how images and latents correspond."""
