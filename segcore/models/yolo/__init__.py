"""YOLO11-seg. In the order of reading:

model       the adapter: pixels -> canvas -> raw outputs -> instances
letterbox   an image on the model's canvas, and the way back
network     the network, made of blocks
fusion      the same network in fewer operations, for inference
checkpoint  which files hold it, what they say, and the network with their weights
"""
