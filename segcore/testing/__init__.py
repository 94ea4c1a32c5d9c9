"""Synthetic archives with known masks, and a real S3 server on loopback."""
