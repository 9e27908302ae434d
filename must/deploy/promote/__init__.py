"""The model registry: versions of models, the champion, promotion, and rollback."""
