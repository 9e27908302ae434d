"""The method: backbones and the masked network, MUST's training on any number of GPUs, and how much of it is kept."""
