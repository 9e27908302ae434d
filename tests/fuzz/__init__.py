"""Coverage-guided fuzzing of what parses foreign bytes; see README.md."""
