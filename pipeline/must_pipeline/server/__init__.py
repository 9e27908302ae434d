"""Kubeflow Pipelines' server: its API, a run's parameters before they are sent, and waiting for a run's end.

May import must and kfp_server_api; the only place that talks to the server, and it knows nothing of the DAG's stages.
"""
