"""What leaves the house: exports, predictions, the server, the registry of promoted models."""
