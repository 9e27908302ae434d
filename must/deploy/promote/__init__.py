"""The model registry: where models live, which one is the champion, how a new one takes over, how to go back.

Imports model and, for the name of a run, train.
"""
