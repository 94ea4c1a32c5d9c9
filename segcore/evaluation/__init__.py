"""How good the masks of an output are.

ground_truth         COCO files as every command takes them (truth_file, truth_masks)
matching             which images and classes of an output are which of the ground truth
objects              known objects and detections as columns
coco_matching        which detection is which known object (contested, numba_matching)
average_precision    COCO AP of detections in memory
analysis             curves, best score thresholds, calibration, confusion, worst images
resources            all cores, and no search for garbage meanwhile
evaluate             all of it for the output of a run
"""
