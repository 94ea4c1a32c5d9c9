"""The segcore command: one thin module for each command."""
