"""Using a trained model: exports, predictions, the server, the registry of promoted models."""
