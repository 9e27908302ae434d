"""`must review`: a page on which a person says what pictures show, and what comes of the answers.

`prepare` runs the networks, once; the rest needs no torch: `session` hands out pictures and keeps answers, `http` has
the page's addresses, `page` is the page itself, and the one that carries its pictures.
"""
