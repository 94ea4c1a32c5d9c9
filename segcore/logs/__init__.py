"""Log records: what is shown and kept, how it is cleaned and written, errors that repeat."""
