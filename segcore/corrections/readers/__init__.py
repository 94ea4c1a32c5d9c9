"""What annotation tools write, read as untrusted input: one module for each format."""
