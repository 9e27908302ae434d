"""What a person's answers say of the rungs between zero-shot and an adapted model. numpy alone.

`plan` chooses the pictures, `bets` is the test that may be stopped at any time, `judge` turns answers into a decision;
`plan` and `book` have the two files: what is asked, and what was answered; `decided` is what `must select` takes.
`doubts` is another order of pictures, to correct a model's classes, from which nothing is estimated.
"""
