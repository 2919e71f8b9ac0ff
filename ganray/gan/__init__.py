"""Latents, networks, losses and the two updates. Independent of files, ranks and logging."""
