"""`must review`: a page on which people label pictures, and the effect of their answers.

`prepare` runs the networks, once; the other modules need no torch: `session` selects pictures and stores answers,
`http` has the page's addresses, `page` builds the page, also as one file that contains its pictures.
"""
