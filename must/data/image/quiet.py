"""Pillow's warnings: about large images (our own limit decides) and damaged metadata (the pixels count)."""

import warnings


def silence_pillow() -> None:
    """Nothing that a user could act on. For a stage's process and its workers; a host program decides for itself."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
