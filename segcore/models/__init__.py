"""Models: architectures, checkpoints, preprocessing and postprocessing of each."""
