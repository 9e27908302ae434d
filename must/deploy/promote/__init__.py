"""The model registry: where models live, which one is the champion, how a new one takes over, how to go back."""
