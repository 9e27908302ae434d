"""After the gate: where models live, which one is the champion, how a new one takes over and how to go back.

Imports model and, for the name of a run, train.
"""
