"""Mask R-CNN with a ResNet-50 feature pyramid, in both published layouts."""
