"""One unit from bytes to committed parts; knows nothing of Ray."""
