"""ganray: distributed GAN training on Ray, to compare mode collapse.

Importing it has no side effect.
"""

__version__ = "0.1.0"
