"""A server of exported models: pictures in, names out, over HTTP (the open inference protocol, v2).

No torch. One event loop reads requests and writes answers (http), threads decode images (work), one thread a model
runs forward passes over whatever has come together (batching), and a model is exchanged for the registry's next
champion while requests go on (models).
"""
