"""The DAG, how it is compiled, and how it runs: on this machine or on Kubeflow Pipelines.

A module for each command of `must-pipeline`; what they are made of, in the folders.
"""
