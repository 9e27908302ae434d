"""A server of exported models: images in, class names out, over HTTP (the open inference protocol, v2).

No torch. One event loop reads requests and writes responses (http), threads decode images (work), one thread per model
runs forward passes over batches of waiting images, and the model is replaced by the registry's next champion while the
server runs (models).
"""
