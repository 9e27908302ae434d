"""What people say that pictures show: the pictures that are asked, the answers, what they measure. numpy alone.

`review` is the file of the pictures, `book` that of the answers, `estimate` the accuracies that follow.
"""
