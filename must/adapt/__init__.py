"""From images and class names to an adapted model in one call: shard, classifier, train, evaluate.

`must.adapt` is this room's function, `must adapt` the command; `must.adapt.adapted` holds what comes back.
"""
