"""The DAG, how it is compiled, and how it runs: on this machine or on Kubeflow Pipelines.

The scripts (compile, run_local, submit, schedule) and the DAG stand here; what they are made of, in the folders.
"""
