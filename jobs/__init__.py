"""Recipes that a person runs; the work is in `segcore`."""
