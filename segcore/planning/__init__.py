"""What there is to do, and what of it is done already."""
