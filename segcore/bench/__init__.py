"""Measures segcore on the user's own machine: stages, the whole job, memory, cost."""
