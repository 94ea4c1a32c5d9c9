"""Publishing editions as tables of warehouses, without writing a row again.

`target` reads the URL of the tables, `files` finds the files that make up an edition, `iceberg` and
`delta` know the table formats, and `publish` keeps the order that a death cannot harm.
"""
