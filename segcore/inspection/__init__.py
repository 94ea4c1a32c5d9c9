"""A run seen from its output alone: status and verification."""
