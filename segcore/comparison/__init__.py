"""What differs between two sides: editions of the same images, or an edition and known masks.

instances    the instances of some images as arrays
matching     which instances of two sides are the same object, and what happened to each
editions     the instances of an edition, found by the ids of another one's images
truth        the same from COCO ground truth
totals       what happened, added up
compare      two sides, unit by unit, on all cores
"""
