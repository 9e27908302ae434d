"""People's answers about pictures: the pictures to ask about, the answers, the accuracies. Needs only numpy."""
