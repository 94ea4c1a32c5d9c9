"""Training: COCO data in, a checkpoint and its curves out.

In the order in which data flows:

    config       everything that decides what a training run produces
    data         COCO files -> augmented crops (augment) -> batches with targets (targets)
    loss         head outputs and targets -> loss; which anchor learns what is decided by assign
    optimizer    AdamW, its learning rate, the average of the weights
    loop         the loop over epochs and steps
    files        what a run keeps in its output folder: state, best weights, log
    validate     weights -> mask and box AP on labelled images
    export       weights -> a checkpoint with its card (card)
"""
