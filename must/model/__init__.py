"""Networks: CLIP backbones, towers of several families, the masked network, classifier files and bundles. Wrong or
damaged input raises UserError, with the file or flag and what to do in one line; a hub or bucket that may respond later
raises TransientError."""
