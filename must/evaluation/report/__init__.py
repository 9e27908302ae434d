"""The report: one HTML page with charts as SVG and thumbnails, which needs no script and no network."""
