"""Image towers: what MUST needs of an architecture, in one small class for each kind.

The method is written for a CLIP Vision Transformer: patches, one of which can be replaced by a mask token before
positions are added, and a class token that becomes the image's feature. A tower class defines for another
architecture where its patches are, how tokens become the image's feature, and the feature of a single patch.

A new one is a class here, a case in choose.py, a tiny model in tests/method/model/tiny.py and a row in docs/models.md.
"""

from must.method.model.towers.base import Tower, take
from must.method.model.towers.choose import tower_of

__all__ = ["Tower", "take", "tower_of"]
