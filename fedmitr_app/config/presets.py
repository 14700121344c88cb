"""Presets: what differs from the defaults, by run-config key.

A value that the user gives wins over the preset.
"""

IMAGENET_MEAN = "0.485,0.456,0.406"
IMAGENET_STD = "0.229,0.224,0.225"

Preset = dict[str, bool | int | float | str]

# For a ViT that a large data set trained. An ImageNet-trained backbone is easily ruined by
# synthetic images, so that the student's head alone learns from them (chosen with CIFAR-10 at 96
# px); the rest: docs/explanation/uploads-that-fuse.md.
_PRETRAINED: Preset = {
    # Uploads that can be averaged (docs/explanation/uploads-that-fuse.md).
    "client.epochs": 5,
    "client.augment": "shift-flip",
    "client.learning-rate": 1e-4,
    "client.loss": "logit-adjusted",
    "client.head": "class-means",
    "client.label-smoothing": 0.0,
    "merge.head": "additive",
    "teacher.combine": "class-means",
    "teacher.merged": True,
    "teacher.probe-images": 256,
    # A tenth of a deviation of ImageNet's pixels; and the ancestor's strength of total variation,
    # whose norm there runs over 100 images at once: 1e-4 of it is ten times as much for each.
    "inversion.learning-rate": 0.023,
    "inversion.tv": 1e-3,
    "inversion.flip": 0.5,
    "inversion.initial-images": "photo-crops",
    "inversion.candidates": 1,
    "inversion.targets": "balanced",
    "inversion.teachers-per-image": 1,
    "inversion.feature-match": 1.0,
    "distillation.flip": 0.5,
    "distillation.train": "head",
    "distillation.relabel": "none",
    "distillation.learning-rate": 1e-4,
    "distillation.temperature": 1.0,
    "distillation.hard": 0.3,
}

_DEIT_TINY: Preset = _PRETRAINED | {
    "data.channels": 3,
    "data.mean": IMAGENET_MEAN,
    "data.std": IMAGENET_STD,
    "model.name": "deit_tiny_patch16_224",
    "model.weights": "hub",
    "model.precision": "auto",
    "model.matmul": "auto",
}

# At its own 224 px, sized for a GPU. Nothing was tuned at this size. What takes memory there
# beside the models: 2048 images of 0.6 MB each, and 1000 / 8 kept batches of 64 (4.8 GB).
_DEIT_TINY_224: Preset = _DEIT_TINY | {
    "data.source": "hub",
    "data.image-size": 224,
    "client.batch-size": 64,
    "inversion.images": 2048,
    "inversion.iterations": 30,
    "inversion.batch-size": 128,
}

# The server's part of what docs/explanation/uploads-that-fuse.md measures: two minutes of one core
# for five DeiT-Tiny at 224 px.
_FEW_IMAGES: Preset = {
    "inversion.images": 96,
    "inversion.batch-size": 48,
    "inversion.iterations": 40,
    "distillation.steps": 300,
    "distillation.repeats": 25,
    "distillation.batch-size": 32,
}

PRESETS: dict[str, Preset] = {
    "default": {},
    # Seconds in all, and yet the teacher stands well above FedAvg and the student between them:
    # large patches and steep steps are what so few images and steps can learn with.
    "quick": {
        "data.source": "sklearn-digits",
        "data.image-size": 8,
        "partition.alpha": 0.5,
        "model.patch-size": 4,
        "model.width": 32,
        "model.depth": 2,
        "model.heads": 2,
        "client.epochs": 15,
        "client.learning-rate": 5e-3,
        "client.augment": "none",
        "inversion.images": 96,
        "inversion.batch-size": 48,
        "inversion.stops": "0.25,0.5",
        "teacher.probe-images": 256,
        "distillation.steps": 120,
        "distillation.batch-size": 32,
    },
    "pretrained": _PRETRAINED | _FEW_IMAGES,
    # With few classes a smaller alpha gives most clients one, from which they learn nothing.
    "photos": _DEIT_TINY
    | _FEW_IMAGES
    | {"data.source": "image-folder", "data.image-size": 224, "partition.alpha": 0.5},
    "cifar10-deit-tiny": _DEIT_TINY
    | {
        "data.source": "parquet",
        "data.image-column": "img",
        "data.image-size": 96,
        "data.max-train": 2000,
        "data.max-test": 500,
        "server.eval-batch-size": 100,
        "inversion.images": 128,
        "inversion.batch-size": 64,
        "inversion.iterations": 20,
        "distillation.steps": 240,
        "distillation.batch-size": 32,
    },
    # From here on columns, splits and numbers are those that the hub datasets' cards state; each
    # reads as well from local files, with data.source and data.path changed.
    # img, label; 50000 training and 10000 test images. Held at their own 32 px, 0.15 GB instead
    # of 7.5 GB, and enlarged batch by batch.
    "cifar10-deit-tiny-224": _DEIT_TINY_224
    | {"data.name": "uoft-cs/cifar10", "data.stored-size": 32},
    # image, domain (Art, Clipart, Product, Real World), label (65 classes); 15588 images, all in
    # one split, of which data.test-share is held out. A client is a domain: four nodes.
    "office-home-deit-tiny": _DEIT_TINY_224
    | {
        "data.name": "flwrlabs/office-home",
        "partition.kind": "natural",
        "client.epochs": 10,
    },
    # image, label (100 classes); 50000 training, 10000 validation (not used) and 5000 test
    # images in their original sizes. Not the few-shot task's classes, where each split has its
    # own: those make no test set. The backbone has seen ImageNet's training images.
    "mini-imagenet-deit-tiny": _DEIT_TINY_224
    | {"data.name": "timm/mini-imagenet", "inversion.images": 4096},
}
