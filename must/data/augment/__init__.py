"""The views of an image: weak for the teacher, strong and masked for the student; exact, fast or on the GPU.

The random parameters depend only on (seed, epoch, sample).
"""
