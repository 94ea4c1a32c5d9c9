"""segcore: segment archives of images, masks as Parquet with COCO RLE."""
