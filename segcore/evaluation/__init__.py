"""How good the masks of an output are.

average_precision    COCO AP of detections in memory
matching             which images and classes of an output are which of the ground truth
evaluate             average precision of the output of a run
"""
