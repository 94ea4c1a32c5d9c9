"""Mask R-CNN with a ResNet-50 feature pyramid, in both published layouts. In the order of reading:

model       the adapter: pixels -> detections -> instances
geometry    an image as the network's input, and boxes on the way back
network     the network: backbone, rpn (proposals), heads (boxes, classes, masks)
roi_align   features of regions; layers  what all parts are made of
paste       masks over boxes -> COCO RLE of the image
checkpoint  which files hold it, what they say (categories: COCO's), and the network
"""
