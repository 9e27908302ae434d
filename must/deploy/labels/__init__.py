"""Labels, by a model or by people, as files: in the formats of tools that show them, and as folders of sorted images.

Imports data (tables) and model (names of classes).
"""
