"""Pictures of masks.

overlays     masks drawn over an image, and contact sheets of such pictures
originals    the images behind results, read back from the archive
sample       a contact sheet of a sample of results
"""
