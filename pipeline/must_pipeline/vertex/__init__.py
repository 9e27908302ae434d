"""Vertex AI Pipelines behind the same commands as Kubeflow Pipelines. All that talks to it is here.

`placement` compiles for it. The rest starts runs and schedules, and
needs the extra `vertex`: bodies are made and checked by google-cloud-aiplatform, requests are its generated clients'.
"""
