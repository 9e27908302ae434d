"""Runs the compiled DAG on one machine: Kubeflow's local runners, with corrections.

May import must and kfp.local; nothing about clusters or servers.
"""
