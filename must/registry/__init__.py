"""The registry of promoted models: versions, the champion, rollback."""
