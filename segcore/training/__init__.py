"""Training: COCO data in, a checkpoint and its curves out."""
