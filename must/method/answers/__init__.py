"""People's answers about pictures: the pictures to ask about, the answers, the measured accuracies. Needs only numpy.

`review` is the file of the pictures, `book` that of the answers, `estimate` computes the accuracies.
"""
