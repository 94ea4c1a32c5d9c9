"""Parity with the original implementations, in an environment that has them; see `__main__`.

agreement         how far two programs agree on instances
yolo11            stages and results against ultralytics
maskrcnn          stages and results against torchvision, whose weights maskrcnn_weights makes
segment_command   the same results through `segcore segment`
"""
