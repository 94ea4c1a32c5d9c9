"""Measurements for a machine with a GPU; each also runs with `--device cpu`, on small sizes.

    session              what only a GPU can tell about masks, precision and speed; prints JSON
    make_archive         JPEG files in tar shards, and loose; input of the others
    make_checkpoint      a YOLO11-seg checkpoint with random weights and varied detections (*)
    whole_job            whole jobs through Ray, by settings: images/s and how busy the GPU is
    decode_rate          decoding and preprocessing alone, in threads and processes
    profile_postprocess  where the time of a batch goes: kernels, launches, waits
    handwritten          what a user would write with Ray Data and ultralytics (*)

Those with (*) need ultralytics, which segcore never depends on: run them in the environment that
`python -m tests.parity` makes, with this repository on PYTHONPATH. A session on a GPU goes

    python -m tests.measure.gpu.make_archive WORK/archive --photos PHOTOS --shards 48 --loose 8
    python -m tests.measure.gpu.make_checkpoint WORK/random.pt --photos PHOTOS
    python -m tests.measure.gpu.whole_job WORK/archive --model WORK/random.pt --work WORK
    python -m tests.measure.gpu.decode_rate WORK/archive/loose
    python -m tests.measure.gpu.profile_postprocess WORK/archive/loose --model WORK/random.pt
    python -m tests.measure.gpu.handwritten WORK/archive/loose WORK/hand --model WORK/random.pt

WORK should be on a real disk and not in /dev/shm, which Ray needs for itself. A machine without a
network needs Ray, the libraries for storage and configuration (obstore, boto3, pydantic, typer and
what these need), simplejpeg, pycocotools and, for (*), ultralytics, in a folder on PYTHONPATH.
"""
