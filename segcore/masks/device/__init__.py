"""Instance masks encoded on a torch device.

encode    batches of images: memory limits, transfers, results
plan      what the host prepares: crops, tables, sizes
edges     logits -> edges, on the device
strings   edges -> strings, on the device
"""
