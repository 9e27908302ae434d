"""Runs and schedules on Vertex AI Pipelines, behind the same commands as those on Kubeflow Pipelines.

Needs the extra `vertex`: bodies are made and checked by google-cloud-aiplatform, requests are its generated clients'.
"""
