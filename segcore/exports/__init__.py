"""What is made from results: overlays and contact sheets."""
