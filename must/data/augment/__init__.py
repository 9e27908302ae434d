"""The views of an image, from (seed, epoch, sample): weak for the teacher, strong and masked for the student."""
