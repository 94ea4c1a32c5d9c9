"""Masks made on a torch device."""
