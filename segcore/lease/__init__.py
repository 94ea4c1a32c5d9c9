"""One run at a time on an edition."""
