import hashlib
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import mergevq
from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.losses.alignment import StandInAlignmentConfig, TimmAlignmentConfig
from mergevq.losses.classification import accuracy, classification_loss
from mergevq.pretrained import TimmNetworkConfig, timm_network
from mergevq.teachers.stand_in import (
    StandInClassifier,
    StandInConfig,
    StandInTeacher,
    load_classifier,
    save_classifier,
)
from mergevq.teachers.timm_teacher import TimmTeacher
from mergevq.training.classifier import ClassifierTraining
from mergevq.training.tokenizer import build_training
from mergevq.weights_file import read_weights


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """A small random ViT of timm's with its head for classes, and its weights file."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_a_timm_teacher_renormalises_its_views_and_gives_the_networks_pooled_feature(vit_file):
    model, path = vit_file
    teacher = TimmTeacher(TimmAlignmentConfig(model="test_vit", weights=str(path), teacher_size=160))
    views = torch.rand(2, 3, 160, 160) * 2 - 1
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(((views + 1) / 2 - mean) / std), pre_logits=True)
        torch.testing.assert_close(teacher(views), expected, rtol=1e-4, atol=1e-5)
    assert teacher.dim == expected.shape[1]


def test_position_embeddings_are_resampled_to_the_teachers_view(vit_file):
    _, path = vit_file
    teacher = TimmTeacher(TimmAlignmentConfig(model="test_vit", weights=str(path), teacher_size=48))
    assert teacher(torch.zeros(1, 3, 48, 48)).shape == (1, teacher.dim)
    assert teacher.positions == "resampled from 10 x 10 to 3 x 3: bicubic, antialiased, no offset (timm)"
    trained = TimmTeacher(TimmAlignmentConfig(model="test_vit", weights=str(path), teacher_size=160))
    assert trained.positions is None


def test_a_training_says_that_its_teachers_positions_were_resampled(vit_file):
    _, path = vit_file
    terms = {"alignment": {"kind": "timm", "model": "test_vit", "weights": str(path), "teacher_size": 48}}
    tokenizer = mergevq.create("test_gr", {"head": {"out": 64}})
    training = build_training(terms | {"adversarial": {"kind": "none"}}, tokenizer)
    (note,) = training.notes()
    assert note.startswith(
        "the alignment's teacher has its position embeddings resampled from 10 x 10 to 3 x 3"
    )
    assert build_training({"adversarial": {"kind": "none"}}, mergevq.create("test_gr")).notes() == []


def test_dinov2_loads_from_a_file_of_its_native_resolution_and_gives_its_normalised_class_token(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    assert network.patch_embed.img_size == (518, 518)
    torch.save(network.state_dict(), tmp_path / "dinov2.pth")
    term = TimmAlignmentConfig(
        model="vit_small_patch14_dinov2", weights=str(tmp_path / "dinov2.pth"), teacher_size=28
    )
    teacher = TimmTeacher(term)
    assert teacher.network.pos_embed.shape[1] == 5
    feature = teacher(torch.randn(1, 3, 28, 28))
    assert feature.shape == (1, 384)
    torch.testing.assert_close(feature, F.layer_norm(feature, (384,)), rtol=1e-3, atol=1e-3)


def test_convolutional_networks_are_teachers_too(tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.safetensors")
    term = TimmAlignmentConfig(
        model="test_resnet", weights=str(tmp_path / "resnet.safetensors"), teacher_size=48
    )
    teacher = TimmTeacher(term)
    assert teacher(torch.zeros(2, 3, 48, 48)).shape == (2, teacher.dim)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_weights_of_another_network_are_refused(vit_file):
    _, path = vit_file
    with pytest.raises(
        InputError, match=r"alignment\.weights: '.*vit\.safetensors' does not fit this network"
    ):
        timm_network(
            TimmNetworkConfig(model="test_resnet", weights=str(path)), key="alignment", image_size=160
        )


def test_a_view_that_the_patches_do_not_divide_is_refused(vit_file):
    _, path = vit_file
    with pytest.raises(InputError, match="50 px"):
        TimmTeacher(TimmAlignmentConfig(model="test_vit", weights=str(path), teacher_size=50))


def test_the_checksum_of_a_weights_file_is_verified(vit_file):
    _, path = vit_file
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_weights(str(path), key="x", sha256=right.upper())
    with pytest.raises(InputError, match=f"x: .*has SHA-256 {right}, expected 0123"):
        read_weights(str(path), key="x", sha256="0123")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", pickle.dumps(print, protocol=2)])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"^alignment\.weights: ") as caught:
        read_weights(str(tmp_path / name), key="alignment.weights")
    assert "\n" not in str(caught.value)


def test_a_nested_state_dict_is_unwrapped(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    assert list(read_weights(str(tmp_path / "w.pth"), key="x")) == ["a"]


def test_a_stand_in_survives_its_export_and_says_that_it_saw_labels(tmp_path):
    classifier = StandInClassifier(StandInConfig(classes=4, width=8, num_stages=2, image_size=16))
    save_classifier(classifier, tmp_path)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(load_classifier(tmp_path)(images), classifier(images), rtol=0, atol=0)
    assert '"sees_labels": true' in (tmp_path / "config.json").read_text()
    teacher = StandInTeacher(StandInAlignmentConfig(directory=str(tmp_path)))
    feature = teacher(images)
    assert feature.shape == (2, teacher.dim) == (2, 16)
    torch.testing.assert_close(feature, F.layer_norm(classifier.features(images), (16,)))


def test_something_else_in_the_place_of_a_stand_in_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"alignment\.directory: '.*' holds no trained stand-in teacher"):
        StandInTeacher(StandInAlignmentConfig(directory=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match="something other than a trained stand-in teacher"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        load_classifier(tmp_path)


def test_unlabelled_images_do_not_count():
    logits, labels = torch.randn(4, 3), torch.tensor([2, -1, 0, -1])
    known = labels >= 0
    torch.testing.assert_close(
        classification_loss(logits, labels, 0.1),
        F.cross_entropy(logits[known], labels[known], label_smoothing=0.1),
    )
    assert accuracy(logits, labels) == (logits[known].argmax(-1) == labels[known]).float().mean()
    assert classification_loss(logits, torch.full((4,), -1)) == 0
    assert accuracy(logits, torch.full((4,), -1)) == 0


def test_the_classifier_learns_shapes_apart_from_their_colours():
    """Three classes of 8 x 8 patterns in random colours: a bar, a column, a square outline."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(3, 16, 16)
    masks[0, 6:9, 2:14] = 1
    masks[1, 2:14, 6:9] = 1
    masks[2, 3:13, 3:13] = 1
    masks[2, 5:11, 5:11] = 0

    def batch(size):
        labels = torch.randint(0, 3, (size,), generator=generator)
        colours = torch.rand(2, size, 3, 1, 1, generator=generator) * 2 - 1
        mask = masks[labels][:, None]
        return {"image": mask * colours[0] + (1 - mask) * colours[1], "label": labels}

    torch.manual_seed(0)
    training = ClassifierTraining(
        StandInClassifier(StandInConfig(classes=3, width=8, num_stages=3, image_size=16))
    )
    optimizer = torch.optim.AdamW(training.phases.parameters(), lr=3e-3)
    for step in range(80):
        output = training.phases["classifier"](batch(32), {}, keep=1, step=step)
        optimizer.zero_grad()
        output.total.backward()
        assert all(parameter.grad.isfinite().all() for parameter in training.parameters())
        optimizer.step()
    held_out = batch(300)
    assert accuracy(training.model()(held_out["image"]), held_out["label"]) > 0.8
    assert set(output.losses) == {"total", "accuracy"}


def test_an_impossible_stand_in_is_refused():
    with pytest.raises(InputError, match="too small to be halved"):
        parse(StandInConfig, {"classes": 3, "image_size": 4, "num_stages": 3})
    with pytest.raises(InputError, match="classes"):
        parse(StandInConfig, {"classes": 1})
