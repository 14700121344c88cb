"""Presets: what differs from the defaults, by run-config key.

A value that the user changes from its default wins over the preset.
"""

IMAGENET_MEAN = "0.485,0.456,0.406"
IMAGENET_STD = "0.229,0.224,0.225"

PRESETS: dict[str, dict[str, bool | int | float | str]] = {
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
        "inversion.iterations": 15,
        "inversion.stops": "0.25,0.5",
        "teacher.probe-images": 256,
        "distillation.steps": 60,
        "distillation.batch-size": 32,
    },
    "cifar10-deit-tiny": {
        "data.source": "parquet",
        "data.image-column": "img",
        "data.channels": 3,
        "data.image-size": 96,
        "data.mean": IMAGENET_MEAN,
        "data.std": IMAGENET_STD,
        "data.max-train": 2000,
        "data.max-test": 500,
        "model.name": "deit_tiny_patch16_224",
        "model.weights": "hub",
        "client.epochs": 5,
        "client.augment": "shift-flip",
        "client.learning-rate": 1e-4,
        "server.eval-batch-size": 100,
        "teacher.probe-images": 256,
        "inversion.images": 128,
        "inversion.batch-size": 64,
        "inversion.iterations": 20,
        "inversion.candidates": 4,
        "inversion.flip": 0.5,
        "distillation.flip": 0.5,
        "distillation.train": "head",
        "distillation.relabel": "none",
        "distillation.steps": 240,
        "distillation.learning-rate": 1e-3,
        "distillation.batch-size": 32,
    },
}
