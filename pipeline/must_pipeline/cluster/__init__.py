"""cluster.yaml, what the platform team decides once: read strictly, checked, and put on the DAG's tasks.

May import must, components.images, pipeline.stages and, where tasks are placed, kfp; knows no server and no engine.
"""
