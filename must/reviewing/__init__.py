"""`must review`: a page on which people label pictures, and the effect of their answers."""
