"""Comparing generated images with reference images, to measure mode collapse."""
