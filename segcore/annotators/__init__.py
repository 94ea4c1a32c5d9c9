"""Pre-labels without files: annotation tools ask, and an edition answers.

task_names            the names that a link of a task gives an image
edition_images        the images of an edition by such names, with their masks
cvat                  a function for CVAT's auto-annotation
label_config          which labels a project of Label Studio has
label_studio          an ML backend for Label Studio: what it answers
label_studio_server   its HTTP server
"""
