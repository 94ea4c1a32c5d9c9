"""Publishing editions as tables of warehouses: the files stay where they are, and are registered.

`target` reads the URL of the tables, `files` finds the files that make up an edition, `iceberg`
knows the table format, and `publish` keeps the order that a death cannot harm.
"""
