"""Pictures of masks."""
