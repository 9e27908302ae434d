"""The views of an image: weak for the teacher, strong and masked for the student, exact, fast or on the GPU.

What is drawn depends on (seed, epoch, sample) and on nothing else.
"""
