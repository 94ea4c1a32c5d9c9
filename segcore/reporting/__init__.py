"""A report on an edition: one HTML file that needs neither network nor script.

report       what is asked for, and the file
contents     what an edition holds, in one pass: counts, histograms, images to look at
sections     words and numbers: the run, counts and histograms, scores
analysis     curves, best scores, calibration and confusions against known masks
cost         what a run cost, at a stated price
changes      what differs from another edition, or from known masks
gallery      images with their masks as paths
outlines     masks as SVG paths
charts       bar charts and tables
page         the whole document: sections within their budgets of bytes, style, script
html         elements, and the only place where text is escaped
"""
