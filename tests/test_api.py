"""The library without Flower: the same bits as the strategy's, and a model that can be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

import fedmitr_app as fedmitr
from fedmitr_app.errors import ConfigError, DataError, RunFolderError, UploadError
from fedmitr_app.methods import METHODS, settings_for
from fedmitr_app.models import InputSpec, spec_of, wrap_model
from fedmitr_app.partitions import ImageSet
from fedmitr_app.strategies import OneShotStrategy, split_ensemble
from fedmitr_app.strategies.records import MOMENTS_KEY
from fedmitr_app.training.moments import class_moments
from tests.helpers.fake_grid import FakeGrid, reply
from tests.helpers.library import CLASSES, CLIENTS, EXAMPLES, SMALL, states, vit
from tests.helpers.rounds import QUICK

ROOT = Path(__file__).parents[1]
CHANGES = SMALL | {
    "inversion.iterations": 3,
    "inversion.stops": "0.5",
    "inversion.candidates": 2,
    "distillation.holdout": 0.0,
    "generator.turns": 3,
    "generator.steps": 2,
    "generator.latent": 8,
    "generator.width": 4,
}
NAMES = sorted(name for name, method in METHODS.items() if "real-images" not in method.needs)


def shared_moments():
    """Each client's, of images of its own under θ₀."""
    model, found = wrap_model(vit()).eval(), []
    for number, count in enumerate(EXAMPLES):
        rng = torch.Generator().manual_seed(number)
        images = torch.randint(0, 256, (count, 1, 16, 16), generator=rng, dtype=torch.uint8)
        shard = ImageSet(images, torch.arange(count) % CLASSES, tuple("abc"))
        found.append(class_moments(model, shard, device="cpu"))
    return found


def by_strategy(method):
    moments = shared_moments()

    def answer(message):
        number = message.metadata.dst_node_id - 11
        content = {
            "arrays": ArrayRecord(states()[number]),
            "metrics": MetricRecord({"num-examples": EXAMPLES[number]}),
            "upload": ConfigRecord({"client-key": f"client-{number:03d}", "status": "ok"}),
        }
        if "moments" in METHODS[method].needs:
            content[MOMENTS_KEY] = ArrayRecord(
                {name: torch.from_numpy(v) for name, v in moments[number].arrays().items()}
            )
        return reply(message, RecordDict(content))

    model = vit()
    _, settings = settings_for(wrap_model(model), changes=CHANGES)
    strategy = OneShotStrategy(model, method, settings, device="cpu", **QUICK)
    grid = FakeGrid([11, 12, 13], answer)
    return strategy.start(grid, ArrayRecord(model.state_dict()), timeout=5.0)


@pytest.fixture
def identity(monkeypatch):
    """Messages can be built only where Flower runs a task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("method", NAMES)
def test_every_method_gives_the_bits_of_the_strategy(method, tmp_path):
    moments = shared_moments() if "moments" in METHODS[method].needs else None
    paths = [tmp_path / f"{number}.safetensors" for number in range(CLIENTS)]
    for path, state in zip(paths, states(), strict=True):
        save_file(state, path)
    uploads = [states()[0], paths[1], str(paths[2])]  # in memory, or by path
    model = vit()
    found = fedmitr.fuse(
        uploads, model, num_examples=EXAMPLES, method=method, changes=CHANGES, moments=moments
    )
    expected = by_strategy(method).arrays.to_torch_state_dict()
    images = torch.randint(0, 256, (7, 1, 16, 16), dtype=torch.uint8)
    if method == "ensemble":
        assert found.model is None and found.state_dict is None
        assert len(split_ensemble(expected)) == len(found.teacher.models) == CLIENTS
    else:
        assert found.state_dict.keys() == expected.keys()
        assert all(torch.equal(found.state_dict[name], expected[name]) for name in expected)
        assert isinstance(found.model, VisionTransformer)
    assert 0 <= found.accuracy(images, torch.zeros(7).long()) <= 1
    assert found.preset == "default" and not found.left_out
    before = vit().state_dict()  # θ₀ is not changed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def trained(name="deit_tiny_patch16_224", **changes):
    """A model that looks trained: its norms are no longer as they were made."""
    model = timm.create_model(name, num_classes=CLASSES, **changes)
    with torch.no_grad():
        model.blocks[0].norm1.weight += 0.01
    return model


def test_settings_and_normalisation_suit_what_the_model_is():
    model = trained(img_size=32)
    imagenet = model.pretrained_cfg
    assert spec_of(model) == InputSpec(32, 3, tuple(imagenet["mean"]), tuple(imagenet["std"]))
    name, settings = settings_for(wrap_model(model))
    assert name == "pretrained" and settings.merge.head == "additive"
    assert settings.distillation.train == "head" and settings.teacher.combine == "class-means"
    fresh = timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES, img_size=32)
    assert spec_of(fresh) == InputSpec(32, 3, (0.5,), (0.5,))
    assert settings_for(wrap_model(fresh))[0] == "default"
    assert settings_for(wrap_model(vit()), "pretrained")[0] == "pretrained"
    lines = fedmitr.FedMITR(model, device="cpu").summary_lines()
    assert "Settings: 'pretrained'" in lines
    assert any(line.startswith("Images: 32 px, mean (0.485") for line in lines)
    with pytest.raises(ConfigError, match="preset = 'magic' is not allowed: it must be one of"):
        fedmitr.FedMITR(model, preset="magic")


def test_what_fuse_leaves_behind_can_be_loaded_and_asked(tmp_path):
    names = ["cat", "dog", "owl"]
    found = fedmitr.fuse(
        states(), vit(), method="fedavg", run_dir=tmp_path / "run", class_names=names
    )
    predictor = fedmitr.load(tmp_path / "run", device="cpu")
    assert predictor.class_names == tuple(names) == found.class_names
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    file = tmp_path / "x.png"
    Image.fromarray(pixels).save(file)
    whole = torch.from_numpy(pixels)[None]
    ways = [str(file), file, Image.open(file), pixels, whole, whole / 255, pixels[None]]
    several = predictor.predict(ways)
    expected = found.model(found.spec.normalise(whole[None])).softmax(-1)[0]
    for each in (*several, predictor.predict(file)):
        assert list(each.probabilities) == names
        torch.testing.assert_close(torch.tensor(list(each.probabilities.values())), expected)
        assert each.label == names[int(expected.argmax())]
        assert each.probability == pytest.approx(float(expected.max()), rel=1e-5)
    assert predictor.predict([]) == []
    assert len(predictor.predict([whole] * 70)) == 70


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nowhere.png", "nowhere.png' does not exist"),
        (b"no image", "is not a readable 8-bit image"),
        (torch.zeros(3, 16, 16), r"image 1 of 1 is a tensor .* \[1, size, size\]"),
        (torch.full((1, 16, 16), 2.0), "uint8 or float in"),
        (torch.zeros(1, 16, 8), "it must be"),
        (None, "is not a readable"),
    ],
)
def test_what_is_no_image_is_one_sentence(tmp_path, image, words):
    fedmitr.fuse(states(), vit(), method="fedavg", run_dir=tmp_path / "run")
    predictor = fedmitr.load(tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match=words) as error:
        predictor.predict(image)
    assert "\n" not in str(error.value)


def damaged(folder, change):
    path = folder / "global_model.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("architecture"), "can't be read"),
        (lambda d: d["architecture"].update(name="hf-hub:somebody/x"), "none that a run writes"),
        (lambda d: d["architecture"].update(depth=10**9), "none that a run writes"),
        (lambda d: d["architecture"].update(embed_dim=32), "can't be read"),
        (lambda d: d["architecture"].update(embed_dim="32"), "none that a run writes"),
        (lambda d: d.update(class_names=["a"]), "names 1 classes for a model of 3"),
        (lambda d: d.update(class_names=7), "no list of words"),
        (lambda d: d["input_spec"].update(size=17), "can't be read"),
        (lambda d: d["input_spec"].update(mean=[0.5, 0.5]), "other numbers than channels"),
        (lambda d: d["input_spec"].update(std=[0.0]), "a deviation that is not above 0"),
        (lambda d: d.update(class_names=["a", "a", "b"]), "don't all differ"),
    ],
)
def test_a_folder_with_a_strange_model_is_one_sentence(tmp_path, change, words):
    folder = tmp_path / "run"
    fedmitr.fuse(states(), vit(), method="fedavg", run_dir=folder)
    damaged(folder, change)
    with pytest.raises(RunFolderError, match=words) as error:
        fedmitr.load(folder, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.half(), "must be float32"),
        (lambda value: value * torch.nan, "NaN or infinity"),
    ],
)
def test_weights_of_no_use_are_one_sentence(tmp_path, change, words):
    folder = tmp_path / "run"
    fedmitr.fuse(states(), vit(), method="fedavg", run_dir=folder)
    state = {name: change(value) for name, value in states()[0].items()}
    save_file(state, folder / "global_model.safetensors")
    with pytest.raises(RunFolderError, match=words) as error:
        fedmitr.load(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_pipes_are_not_waited_for(tmp_path):
    folder, pipe = tmp_path / "run", tmp_path / "x.png"
    fedmitr.fuse(states(), vit(), method="fedavg", run_dir=folder)
    os.mkfifo(pipe)
    predictor = fedmitr.load(folder, device="cpu")
    with pytest.raises(DataError, match="it is a pipe and no ordinary file"):
        predictor.predict(pipe)
    with pytest.raises(UploadError, match="no ordinary file"):
        fedmitr.fuse([pipe], vit(), method="fedavg")
    (folder / "global_model.safetensors").unlink()
    os.mkfifo(folder / "global_model.safetensors")
    with pytest.raises(RunFolderError, match="no ordinary file"):
        fedmitr.load(folder, device="cpu")


def test_images_stay_their_owners_and_numbers_may_be_of_any_width(tmp_path):
    folder = tmp_path / "run"
    counts, classes = np.array([5, 6, 7]), [np.array([2, 2, count]) for count in (1, 2, 3)]
    fedmitr.fuse(
        states(),
        vit(),
        method="fedavg",
        run_dir=folder,
        num_examples=counts,
        label_counts=classes,
    )
    predictor = fedmitr.load(folder, device="cpu")
    Image.new("L", (20, 20)).save(tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as image:
        predictor.predict(image)
        image.seek(0)  # it is open still
    whole = torch.rand(1, 16, 16).double()
    told = [predictor.predict(whole.to(kind)) for kind in (torch.float64, torch.float32)]
    assert told[0].probability == pytest.approx(told[1].probability)


def test_copies_are_among_those_left_out():
    found = fedmitr.fuse([states()[0], states()[0], states()[1]], vit(), method="fedavg")
    assert found.left_out == {"client-001"}


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match="holds no global model .* a run that has ended"):
            fedmitr.load(folder)


def other(state, **changes):
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


FIRST = vit(1).state_dict()
BAD = {
    "nothing": ([], {}, ConfigError, "a list of at least one state dict"),
    "one alone": (FIRST, {}, ConfigError, "a list of at least one state dict"),
    "no state": ([FIRST, 3], {}, UploadError, "Upload 1: it is a int, and no state dict"),
    "no tensor": ([other(FIRST, head__bias=[1, 2])], {}, UploadError, "'head.bias' is a list"),
    "another model": (
        [FIRST, vit(2, depth=3).state_dict()],
        {},
        UploadError,
        "Upload 1: its arrays are not",
    ),
    "another width": (
        [vit(2, embed_dim=32).state_dict()],
        {},
        UploadError,
        r"Upload 0: .* has shape",
    ),
    "integers": (
        [other(FIRST, head__bias=torch.zeros(3).long())],
        {},
        UploadError,
        "is of type int64",
    ),
    "not finite": (
        [other(FIRST, head__bias=torch.full((3,), torch.nan))],
        {},
        UploadError,
        "3 of 3 values",
    ),
    "no file": (["nowhere.safetensors"], {}, UploadError, r"Upload 0 \(nowhere.safetensors\): it"),
    "too few counts": ([FIRST], {"num_examples": [1, 2]}, ConfigError, "one for each of the 1"),
    "a wrong count": ([FIRST], {"num_examples": [-3]}, UploadError, "num-examples = -3"),
    "label counts": (
        [FIRST],
        {"num_examples": [5], "label_counts": [[1, 2, 3]]},
        UploadError,
        "sum to 6 but num-examples = 5",
    ),
    "class names": ([FIRST], {"class_names": ["a", "a", "b"]}, ConfigError, "3 different words"),
    "a method": ([FIRST], {"method": "magic"}, ConfigError, "method = 'magic' is not allowed"),
    "a setting": ([FIRST], {"changes": {"inversion.typo": 1}}, ConfigError, "is not a setting"),
    "a device": ([FIRST], {"device": "tpu"}, ConfigError, "device = 'tpu'"),
    "a name that is no word": (
        [FIRST],
        {"class_names": [1, 2, 3]},
        ConfigError,
        "3 different words",
    ),
    "a setting of a client": (
        [FIRST],
        {"changes": {"client.epochs": 3}},
        ConfigError,
        "changes = 'client.epochs' is not allowed: it must be settings of merge, teacher",
    ),
    "a preset among the changes": (
        [FIRST],
        {"changes": {"preset": "quick"}},
        ConfigError,
        "changes = 'preset' is not allowed",
    ),
    "moments that a method needs": (
        [FIRST],
        {"method": "fedcgs"},
        ConfigError,
        "moments = None is not allowed: it must be each client's ClassMoments",
    ),
    "moments of another kind": (
        [FIRST],
        {"method": "fedcgs", "moments": [{}]},
        UploadError,
        "Upload 0: its moments are a dict",
    ),
    "no number": ([FIRST], {"num_examples": 5}, ConfigError, "one for each of the 1"),
    "a generator": ((each for each in [FIRST]), {}, ConfigError, "a list of at least one"),
    "a strange width": (
        [other(FIRST, head__bias=FIRST["head.bias"].to(torch.float8_e4m3fn))],
        {},
        UploadError,
        "head.bias is torch.float8_e4m3fn",
    ),
    "sparse": (
        [other(FIRST, head__bias=torch.ones(3).to_sparse())],
        {},
        UploadError,
        "in a form that has no numbers",
    ),
    "an impossible folder": (
        [FIRST],
        {"run_dir": "a\0b"},
        RunFolderError,
        "can't be used",
    ),
    "moments": ([FIRST], {"moments": []}, ConfigError, "moments = .* one for each of the 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_fused_is_one_sentence(case):
    uploads, more, kind, words = BAD[case]
    with pytest.raises(kind, match=words) as error:
        fedmitr.fuse(uploads, vit(), **{"method": "fedavg", **more})
    assert "\n" not in str(error.value)


def test_mixed_widths_of_numbers_are_cast(caplog):
    kinds = torch.float16, torch.bfloat16, torch.float64
    half = [
        {name: value.to(kind) for name, value in state.items()}
        for state, kind in zip(states(), kinds, strict=True)
    ]
    found = fedmitr.fuse(half, vit(), method="fedavg").state_dict
    assert all(value.dtype == torch.float32 for value in found.values())
    whole = fedmitr.fuse(states(), vit(), method="fedavg").state_dict
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-2, atol=1e-2)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="already holds files: choose a new folder"):
        fedmitr.fuse(states(), vit(), method="fedavg", run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_library_works_where_neither_flower_nor_ray_is_installed(tmp_path):
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flwr", "ray", "flwr_datasets"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import fedmitr_app as fedmitr
assert "torch" not in sys.modules and {{"fuse", "load", "FedMITR"}} <= set(dir(fedmitr))
import torch
from timm.models.vision_transformer import VisionTransformer
def vit(seed):
    torch.manual_seed(seed)
    return VisionTransformer(img_size=16, patch_size=4, in_chans=1, num_classes=3, embed_dim=16,
                             depth=1, num_heads=2)
changes = {CHANGES!r}
made = fedmitr.fuse([vit(1).state_dict(), vit(2).state_dict()], vit(0), changes=changes,
                    run_dir={str(tmp_path / "run")!r})
told = fedmitr.load({str(tmp_path / "run")!r}).predict(torch.zeros(1, 16, 16))
print(made.fused.images, told.label)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == "10"
