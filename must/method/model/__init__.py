"""Networks: CLIP backbones, towers of several families, the masked network, classifier files and bundles."""
