"""Models: pixels -> instances. In the order of reading:

base         the contract of a model, its options, and what it says about itself
registry     names, paths, links and classes -> models
families     what the registry asks of a family of models
checkpoints  file formats -> tensors and metadata; pickles reads pickles without running them
downloads    published weights -> the cache; catalogue lists what is there
devices, nms, checks   shared by the families
yolo, maskrcnn, huggingface   the families; each knows its own checkpoints
bundled      weights that are part of the package
"""
