"""Neighbours: labels of similar images, and the memory that carries them into the model."""
