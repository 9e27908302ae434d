"""Kubeflow Pipelines' server: its API, checks of a run's parameters before they are sent, and waiting for a run's end.

May import must and kfp_server_api. Only this package calls the server; it contains nothing about the DAG's stages.
"""
