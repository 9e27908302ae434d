"""The method: the step of the paper, its losses, teacher and schedules, and the loop with checkpoints around it."""
