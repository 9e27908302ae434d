"""cluster.yaml, the settings of the platform team: read strictly, checked, and applied to the DAG's tasks.

May import must, must_components.images, must_pipeline.stages and, in placement.py, kfp; no server and no engine.
"""
