"""Latents, networks, losses and the two updates. Knows nothing of files, ranks or logging."""
