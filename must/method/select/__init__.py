"""How much of an adaptation to keep, decided without labels: the audited ladder between zero-shot and adapted weights.

`neighbours`, `ladder` and `mutual_information` are arithmetic on arrays (numpy alone); `tokens` and
`rung_predictions` run the networks; `alpha` puts them together for `must select`,
`must train --select` and `must evaluate`.
"""
