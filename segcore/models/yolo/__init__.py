"""YOLO11-seg."""
