"""The demo: draw an archive with known masks, segment it, check the result and show it."""
