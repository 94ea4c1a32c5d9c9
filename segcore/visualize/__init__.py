"""Pictures of masks.

overlays     masks drawn over an image, and contact sheets of such pictures
paths        masks as paths of SVG
labels       categories and scores written on them
originals    the images behind results, read back from the archive
selection    which images of an edition to look at
pictures     an image of an edition with its masks, labels and scores, or why there is none
sheet        files of such pictures, and sheets of many
sample       a contact sheet of a sample of results
"""
