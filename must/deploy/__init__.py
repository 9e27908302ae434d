"""Using a trained model: exports, predictions, the server, the registry of promoted models.

What a user has to correct is raised as UserError, a ValueError, with one line; what is wrong with a request to a server
as Refused. Docstrings name other errors only."""
