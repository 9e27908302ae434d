"""How much of an adaptation to keep, decided without labels: the audited ladder between zero-shot and adapted weights.

`neighbours`, `ladder` and `signal` are arithmetic on arrays (numpy alone); `tokens`, `rung_predictions` and `weights`
run the networks; `choose` puts them together for `must select`, `must train --select` and `must evaluate`.
"""
