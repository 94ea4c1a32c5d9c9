"""Leases in storage: one run at a time on an edition."""
