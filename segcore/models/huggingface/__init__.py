"""Mask2Former and MaskFormer from folders of Hugging Face transformers. In the order of reading:

model    the adapter: pixels -> logits -> instances
folder   what a folder says, read without trusting it
loading  a folder -> the network and the image processor of transformers
queries  logits of queries -> instances
"""
