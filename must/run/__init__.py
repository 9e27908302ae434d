"""What a run of the pipeline tells about itself: notes of its stages, a summary, curves while it trains."""
