"""Results as files for annotation tools, and their corrections back as COCO ground truth.

options         what is exported, and how
export          an export from beginning to end
  archive         the images of an edition with their masks, in order
  selection       which of them, by class, score, size, path and list
  names           safe unique names for images
  pictures        the images themselves: copied, linked, or named by a link
  shapes          masks as outlines, runs by rows, small pictures
  formats/        one module for each format
  encoding        images through a format, in several processes
  state           which ids were given, and what is done
  summary         what was written, cut and lost
"""
