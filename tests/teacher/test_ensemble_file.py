"""An ensemble that a run left answers as it did when it taught."""

import pytest
import torch

import fedmitr_app as fedmitr
from fedmitr_app.config import COMBINATIONS
from fedmitr_app.errors import ConfigError, RunFolderError
from fedmitr_app.utils.files import load_tensors, save_tensors
from tests.helpers.library import states, vit

COUNTS = [[4, 1, 1], [0, 11, 1], [3, 3, 3]]
TOLD = {"num_examples": [6, 12, 9], "label_counts": COUNTS}
NAMES = ["cat", "dog", "owl"]


def images(count=7):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(5))


def fused(folder, method="ensemble", **changes):
    small = {"teacher.probe-images": 8, **changes}
    return fedmitr.fuse(
        states(), vit(), method=method, run_dir=folder, changes=small, class_names=NAMES, **TOLD
    )


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("defence", ["none", "clip"])
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_it_answers_as_it_taught(tmp_path, combine, defence, merged):
    changes = {
        "teacher.combine": combine,
        "teacher.defence": defence,
        "teacher.merged": merged,
        "merge.head": "average",
    }
    made = fused(tmp_path / "run", **changes)
    predictor = fedmitr.load(tmp_path / "run", "ensemble", device="cpu")
    assert predictor.class_names == tuple(NAMES)
    assert len(predictor.model.members) == 3 + merged
    with torch.no_grad():
        expected = made.teacher(made.spec.normalise(images())).logits
        found = predictor.model(predictor.spec.normalise(images()))
    assert torch.equal(found, expected)
    told = predictor.predict(list(images()))
    shares = torch.tensor([list(each.probabilities.values()) for each in told])
    torch.testing.assert_close(shares, expected.softmax(-1))


def test_who_was_left_out_is_no_member(tmp_path):
    uploads = [*states(), states()[0]]  # a copy
    made = fedmitr.fuse(uploads, vit(), method="ensemble", run_dir=tmp_path / "run")
    assert made.left_out == {"client-003"}
    kept = fedmitr.load(tmp_path / "run", "ensemble", device="cpu").model.teacher
    assert kept.keys == ("client-000", "client-001", "client-002")


def test_a_client_may_be_called_what_the_merged_model_is(tmp_path, monkeypatch):
    monkeypatch.setattr("fedmitr_app.methods.task.MERGED", "client-002")
    made = fused(tmp_path / "run", **{"teacher.merged": True, "merge.head": "average"})
    assert made.teacher.keys == ("client-000", "client-001", "client-002", "client-002")
    kept = fedmitr.load(tmp_path / "run", "ensemble", device="cpu")
    seen = kept.spec.normalise(images())
    with torch.no_grad():
        assert torch.equal(kept.model(seen), made.teacher(seen).logits)


def test_a_link_in_the_uploads_place_is_not_followed(tmp_path):
    folder = tmp_path / "run"
    fused(folder)
    (folder / "uploads").rename(tmp_path / "elsewhere")
    (folder / "uploads").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="it is a link and no folder"):
        fedmitr.load(folder, "ensemble", device="cpu")


def changed(folder, change):
    stored = load_tensors(folder / "ensemble.safetensors")
    change(stored.facts, stored.tensors)
    save_tensors(folder / "ensemble.safetensors", stored.tensors, stored.facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts, _: facts.pop("members"), "can't be read"),
        (lambda facts, _: facts.update(members=[]), "no list of 1 to"),
        (lambda facts, _: facts.update(members=[{}] * 3), "has no name"),
        (lambda facts, _: facts.update(members=facts["members"][:1] * 10**5), "no list of 1 to"),
        (lambda facts, _: facts["members"].append(facts["members"][0]), "are one upload"),
        (lambda facts, _: facts.update(members=facts["members"][:2]), "none of 2 models and 3"),
        (lambda facts, _: facts["members"][1].update(upload="00"), "upload of client-001 is not"),
        (lambda facts, _: facts["members"][1].update(upload=None), "weights of other models"),
        (lambda _, tensors: tensors.update({"7/head.bias": torch.ones(3)}), "of other models"),
        (lambda facts, _: facts.update(combine="magic"), "in a way that there is not"),
        (lambda facts, _: facts.update(class_names=["a"]), "names 1 classes for a model of 3"),
        (lambda facts, _: facts["architecture"].update(depth=10**9), "none that a run writes"),
        (lambda _, tensors: tensors.pop("class_weights"), "no class_weights"),
        (lambda _, tensors: tensors["class_weights"].fill_(3e38), "no weights"),
        (
            lambda _, tensors: tensors.update(logit_scale=torch.full((3,), 3e38)),
            "beyond all measure",
        ),
        (lambda _, tensors: tensors.update(logit_scale=torch.ones(3).half()), "are none of 3"),
        (lambda _, tensors: tensors["class_weights"].neg_(), "no weights"),
        (lambda _, tensors: tensors["class_weights"].mul_(torch.nan), "class_weights are none"),
        (lambda _, tensors: tensors.update(logit_shift=torch.ones(2, 3)), "logit_shift are none"),
    ],
)
def test_a_strange_ensemble_is_one_sentence(tmp_path, change, words):
    folder = tmp_path / "run"
    fused(folder)
    changed(folder, change)
    with pytest.raises(RunFolderError, match=words) as error:
        fedmitr.load(folder, "ensemble", device="cpu")
    assert "\n" not in str(error.value)


def test_an_upload_that_is_damaged_or_gone_is_one_sentence(tmp_path):
    folder = tmp_path / "run"
    fused(folder)
    first = sorted((folder / "uploads").glob("*.safetensors"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(RunFolderError, match="holds an ensemble that can't be read"):
        fedmitr.load(folder, "ensemble", device="cpu")
    for file in (folder / "uploads").iterdir():
        file.unlink()
    with pytest.raises(RunFolderError, match="upload of client-000 is not in uploads/"):
        fedmitr.load(folder, "ensemble", device="cpu")


def test_a_part_that_a_run_has_not_is_one_sentence(tmp_path):
    fused(tmp_path / "one")
    with pytest.raises(RunFolderError, match="holds no global model .* or load its 'ensemble'"):
        fedmitr.load(tmp_path / "one", device="cpu")
    fused(tmp_path / "two", "fedavg")
    with pytest.raises(RunFolderError, match="holds no ensemble .* a method that has a teacher"):
        fedmitr.load(tmp_path / "two", "ensemble", device="cpu")
    with pytest.raises(ConfigError, match="run_dir = 3 is not allowed"):
        fedmitr.load(3, "ensemble")
    with pytest.raises(ConfigError, match="part = 'teacher' is not allowed"):
        fedmitr.load(tmp_path / "two", "teacher", device="cpu")
