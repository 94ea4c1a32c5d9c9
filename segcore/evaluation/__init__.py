"""How good masks are: COCO average precision against ground truth."""
