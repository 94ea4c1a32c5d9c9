"""Which images of an edition to look at first, and how many to check.

rank            a ranking of an edition, from what is asked for to the file
methods         what images can be ranked by
facts           what the tables say of each image, unit by unit
diverse         images that differ most from one another: k-centre over their features
sample_size     how many images to check for a stated error, and what the checked ones tell
"""
