"""The report: one HTML page with charts as SVG and thumbnails, which needs no script and no network.

Imports what evaluate measured; nothing but must.evaluation.evaluate asks for it.
"""
