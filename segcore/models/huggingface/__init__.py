"""Mask2Former and MaskFormer from folders of Hugging Face transformers."""
