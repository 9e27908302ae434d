"""The compiled DAG on one machine: Kubeflow's local runners, corrected where they would hide or delay something.

May import must and kfp.local; knows neither a cluster nor a server.
"""
