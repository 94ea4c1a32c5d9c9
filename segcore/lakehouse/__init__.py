"""Publishing editions as tables of warehouses: the files stay where they are, and are registered.

`target` reads the URL of the tables, `files` finds the files that make up an edition, `iceberg` and
`delta` know one table format each, and `publish` keeps the order that a death cannot harm.
"""
