"""Networks: CLIP backbones, towers of several families, the masked network, classifier files and bundles.

Imports image and distributed (which device), and neither data nor training.
"""
