"""Corrections from annotation tools as COCO ground truth of the archive.

objects                 an image as a tool gives it back, and its objects as masks
readers/                one module for each format
import_corrections      matching with the export, and the ground truth
"""
