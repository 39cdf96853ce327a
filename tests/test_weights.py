"""A new model from the weights of another: every kind of file, classes by name, and files that
cannot serve."""

import json
import logging
import os
import pickle
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import redetr
from redetr.checkpoint import save_weights
from redetr.commands.train import parse
from redetr.config import TrainConfig
from redetr.weights.reading import Origin, Weights, read_weights
from redetr.weights.starting import start_from, starting_point

DETR = TrainConfig(
    model="detr_r50",
    num_queries=5,
    model_options=(
        "backbone=[16, 32, 64]",
        "hidden_dim=64",
        "nheads=2",
        "enc_layers=1",
        "dec_layers=1",
        "dim_feedforward=32",
    ),
)
# Other programs know only these backbones.
RESNET = replace(DETR, model_options=("backbone=resnet18", *DETR.model_options[1:]))
FAST = TrainConfig(model="redetr_n", num_queries=5, model_options=(
    "backbone=[16, 32, 64]", "hidden_dim=32", "nheads=4", "dec_layers=2", "dim_feedforward=64",
))  # fmt: skip
FORMS = pytest.mark.parametrize("config", [DETR, FAST], ids=["faithful", "fast"])
CLASSES = ("cup", "plate", "spoon")


def fresh(config: TrainConfig, num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return redetr.build(config.model, num_classes, **config.model_kwargs())


def write(
    kind: str, folder: Path, config: TrainConfig = DETR, classes: tuple[str, ...] = CLASSES
) -> Path:
    """Random weights in a file or folder of that kind; "trained" are the weights that a detector
    shows."""
    trained = fresh(config, len(classes), seed=7).state_dict()
    about = {
        "config": config.to_dict(),
        "class_names": list(classes),
        "category_ids": list(range(len(classes))),
    }
    if kind == "official":
        torch.save({"model": trained, "optimizer": {}, "epoch": 3}, folder / "detr.pth")
        return folder / "detr.pth"
    if kind == "best.safetensors":
        save_weights(folder / kind, trained, about)
        return folder / kind
    raw = fresh(config, len(classes), seed=8).state_dict()
    path = folder / ("best.pt" if kind == "run folder" else kind)
    torch.save({"model": raw, "ema": trained, "optimizer": {"state": {}}, "step": 9, **about}, path)
    return folder if kind == "run folder" else path


def start(
    source: Any, config: TrainConfig = DETR, classes: tuple[str, ...] = CLASSES
) -> tuple[nn.Module, str]:
    """A new model for `classes` that starts from `source`, and the line that says how."""
    model = fresh(config, len(classes))
    (said,) = starting_point(model, replace(config, weights=str(source)), classes)
    return model, said


def same(found: nn.Module, expected: nn.Module) -> bool:
    found, expected = found.state_dict(), expected.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[n], expected[n]) for n in found
    )


@FORMS
@pytest.mark.parametrize("kind", ["last.pt", "best.safetensors", "run folder"])
def test_files_of_a_run(kind, config, tmp_path):
    model, said = start(write(kind, tmp_path, config), config)
    assert same(model, fresh(config, seed=7))
    count, path = len(model.state_dict()), tmp_path / ("best.pt" if kind == "run folder" else kind)
    assert said == f"loaded {count} of {count} tensors from {path}"
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = model.eval()(images), redetr.load(path, device="cpu").model(images)
    torch.testing.assert_close(found["pred_logits"], expected["pred_logits"])
    with pytest.raises(redetr.InputError, match="not a rtdetr_r101; leave out the model"):
        redetr.load(path, model="rtdetr_r101", device="cpu")


def test_an_official_file(tmp_path):
    """It does not say what its classes are."""
    model, said = start(write("official", tmp_path, RESNET), RESNET)
    expected = fresh(RESNET, seed=7)
    expected.class_embed = model.class_embed
    assert same(model, expected)
    count = len(model.state_dict())
    assert said == (f"loaded {count - 2} of {count} tensors from {tmp_path / 'detr.pth'}; "
                    "class_embed re-initialised (3 classes there, 3 other classes "
                    "here)")  # fmt: skip


def test_an_official_file_of_coco(tmp_path):
    path = write("official", tmp_path, RESNET, classes=tuple("?" * 91))
    model, said = start(path, RESNET, ("dog", "unicorn", "person"))
    there, random = fresh(RESNET, 91, seed=7).class_embed.weight, fresh(RESNET).class_embed.weight
    assert torch.equal(
        model.class_embed.weight, torch.stack([there[18], random[1], there[1], there[91]])
    )
    assert said.endswith("; class_embed: 2 of 3 classes matched by name, the rest re-initialised")


def test_classes_of_pascal_voc_start_from_those_of_coco(tmp_path):
    path = write("official", tmp_path, RESNET, classes=tuple("?" * 91))
    model, said = start(path, RESNET, ("tvmonitor", "dog", "Aeroplane"))
    there = fresh(RESNET, 91, seed=7).class_embed.weight
    assert torch.equal(model.class_embed.weight, there[[72, 18, 5, 91]])
    assert said.endswith(
        "; classes matched by meaning (here = there): tvmonitor = tv, Aeroplane = airplane"
    )


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    config = transformers.DetrConfig(
        backbone="resnet18",
        use_pretrained_backbone=False,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        id2label={0: "plate", 1: "fork"},
    )
    folder = tmp_path_factory.mktemp("transformers")
    transformers.DetrForObjectDetection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    config = transformers.TableTransformerConfig(
        backbone="resnet18",
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=48,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        activation_function="gelu",
        num_queries=5,
        id2label={0: "table", 1: "digit 3", 2: "table rotated"},
    )
    folder = tmp_path_factory.mktemp("table")
    transformers.TableTransformerForObjectDetection(config).save_pretrained(folder)
    return folder


TABLE = TrainConfig(
    model="detr_table",
    num_queries=5,
    model_options=(
        "hidden_dim=64",
        "nheads=2",
        "enc_layers=1",
        "dec_layers=1",
        "dim_feedforward=32",
        "dec_nheads=4",
        "dec_dim_feedforward=48",
        "activation=gelu",
    ),
)


def test_a_table_transformer(table_folder):
    classes = ("cup", "table rotated", "table")
    model, report = start(table_folder, TABLE, classes)
    theirs = redetr.load(table_folder, device="cpu").model
    rows = theirs.class_embed.weight[[2, 0, 3]]  # the last one is "no object"
    assert torch.equal(model.class_embed.weight[1:], rows)
    assert "class_embed: 2 of 3 classes matched by name" in report
    theirs.class_embed = model.class_embed
    assert same(model, theirs)


@pytest.mark.long
def test_a_table_transformer_is_trained(table_folder, shared_coco, tmp_path):
    config = replace(
        TABLE,
        data=str(shared_coco),
        output=str(tmp_path / "run"),
        weights=str(table_folder),
        steps=1,
        batch_size=2,
        image_size=64,
        num_workers=0,
        device="cpu",
    )
    result = redetr.train(config)
    assert result["step"] == 1
    detector = redetr.load(tmp_path / "run", device="cpu")
    assert detector.model.transformer.encoder.layers[0].pre_norm
    assert detector.model.max_size == 800
    assert detector.model.loss_config.eos_coef == 0.4


def test_options_that_differ_from_the_folder_are_named(table_folder):
    other = replace(TABLE, model_options=TABLE.model_options[:-1])
    with pytest.raises(redetr.InputError, match="activation is gelu there and relu here"):
        start(table_folder, other)


def changed_config(folder: Path, target: Path, changes: dict[str, Any]) -> Path:
    """A copy of a folder of Transformers with other settings; `a.b` is b in the table a."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    for name, value in changes.items():
        table, _, inner = name.rpartition(".")
        if table:
            config[table][inner] = value
        else:
            config[name] = value
    (target / "config.json").write_text(json.dumps(config))
    return target


RESNET_CONFIG = {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2],
                 "hidden_sizes": [64, 128, 256, 512]}  # fmt: skip
REFUSED = {
    "num_channels": ({"num_channels": 1}, "num_channels is 1, .* 3$"),
    "activation": (
        {"activation_function": "prelu"},
        "activation_function is 'prelu', .* relu, .*sigmoid$",
    ),
    "position": (
        {"position_embedding_type": "rotary"},
        "position_embedding_type is 'rotary', .*sine or learned",
    ),
    "base model": ({"architectures": ["DetrModel"]}, r"architectures is \['DetrModel'\]"),
    "no masks": (
        {"architectures": ["DetrForSegmentation"], "activation_function": "relu"},
        "says that the model has masks, but the weights have no mask head",
    ),
    "net of timm": (
        {"backbone_config.backbone": "efficientnet_b0"},
        "backbone_config.backbone is 'efficientnet_b0', .* resnet18, .*resnet101",
    ),
    "deep stem": ({"backbone_config.backbone": "resnet50d"}, "backbone is 'resnet50d'"),
    "older name": (
        {"backbone_config": None, "backbone": "resnet26"},
        "config.json: backbone is 'resnet26'",
    ),
    "stride": ({"backbone_config.output_stride": 8}, "output_stride is 8, .*32 or 16"),
    "grey": ({"backbone_config.num_channels": 1}, "backbone_config.num_channels is 1"),
    "older grey": (
        {"backbone_config": None, "backbone_kwargs": {"in_chans": 1}},
        "backbone_kwargs.in_chans is 1",
    ),
    "stage": ({"backbone_config.out_indices": [1, 2, 3]}, r"out_indices is \[1, 2, 3\]"),
    "another family": (
        {"backbone_config.model_type": "swin"},
        "backbone_config.model_type is 'swin', .*timm_backbone or resnet",
    ),
    "v1": (
        {"backbone_config": RESNET_CONFIG | {"downsample_in_bottleneck": True}},
        "downsample_in_bottleneck is True, .*False",
    ),
    "act of resnet": (
        {"backbone_config": RESNET_CONFIG | {"hidden_act": "gelu"}},
        "backbone_config.hidden_act is 'gelu'",
    ),
    "depths": (
        {"backbone_config": RESNET_CONFIG | {"depths": [3, 8, 36, 3]}},
        r"depths is \[3, 8, 36, 3\], .*\(basic\)",
    ),
    "widths": (
        {"backbone_config": RESNET_CONFIG | {"hidden_sizes": [8, 8, 8, 8]}},
        r"hidden_sizes is \[8, 8, 8, 8\]",
    ),
    "heads": ({"decoder_attention_heads": 5}, "hidden_dim must be a multiple of dec_nheads"),
    "kind": (
        {"model_type": "yolos"},
        "model_type is 'yolos': only detr, table-transformer.* can be loaded",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_be_had_are_named(name, table_folder, tmp_path):
    changes, message = REFUSED[name]
    folder = changed_config(table_folder, tmp_path / "changed", changes)
    with pytest.raises(redetr.InputError, match=message) as refused:
        redetr.load(folder, device="cpu")
    assert "\n" not in str(refused.value)


def check_start_from_transformers(source, folder):
    model, said = start(source, RESNET)
    theirs = redetr.load(folder, device="cpu").model
    # The rows of "plate" and "no object".
    assert torch.equal(model.class_embed.weight[[1, 3]], theirs.class_embed.weight[[0, 2]])
    theirs.class_embed = model.class_embed
    assert same(model, theirs)
    assert "class_embed: 1 of 3 classes matched by name" in said


def test_a_folder_of_transformers(transformers_folder):
    check_start_from_transformers(transformers_folder, transformers_folder)


def test_a_hub_name(transformers_folder, tmp_path, monkeypatch):
    """From the hub's cache, where an earlier download left it."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--detr"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    os.symlink(transformers_folder, repository / "snapshots" / ("0" * 40))
    check_start_from_transformers("somebody/detr", transformers_folder)
    with pytest.raises(
        redetr.InputError,
        match=r"somebody/else: no such file, and it cannot be downloaded from the hub .*give its",
    ):
        start("somebody/else")


def test_a_hub_that_breaks_off(monkeypatch, caplog):
    """What the client and its HTTP library raise is one line, without the warnings of its logger;
    an error of ours is none of it."""
    hub = pytest.importorskip("huggingface_hub")
    transport = hub.errors.HfHubHTTPError.__bases__[0]

    def give(error):
        def broken(name, **options):
            logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
            raise error

        monkeypatch.setattr(hub, "snapshot_download", broken)

    for error in (OSError("no network"), transport("no network")):
        give(error)
        with pytest.raises(
            redetr.InputError, match=r"^a/b: .*cannot be downloaded from the hub .no network"
        ):
            start("a/b")
    give(OSError())
    with pytest.raises(redetr.InputError, match=r"cannot be downloaded from the hub .OSError"):
        start("a/b")
    give(TypeError("a mistake"))
    with pytest.raises(TypeError, match="a mistake"):
        start("a/b")
    assert not caplog.messages


def test_weights_of_a_model_that_is_not_known(tmp_path):
    path = write("last.pt", tmp_path)
    content = torch.load(path, weights_only=True)
    content["config"]["model"] = "redetr_next"
    torch.save(content, path)
    with pytest.raises(redetr.InputError, match="unknown model 'redetr_next'"):
        start(path)


@FORMS
def test_classes_are_taken_by_name(config, tmp_path):
    model, said = start(
        write("last.pt", tmp_path, config), config, ("spoon", "fork", "cup", "knife")
    )
    there, random = fresh(config, seed=7), fresh(config, 4)
    heads = [name for name in there.state_dict() if "class_embed." in name]
    assert len(heads) == (2 if config is DETR else 6)  # the fast form: two layers and the encoder
    for name in heads:
        found, given, new = (m.state_dict()[name] for m in (model, there, random))
        # The row of "no object" is the last.
        expected = [given[2], new[1], given[0], new[3]] + ([given[3]] if config is DETR else [])
        assert torch.equal(found, torch.stack(expected))
    count = len(model.state_dict())
    assert said == (f"loaded {count - len(heads)} of {count} tensors from {tmp_path / 'last.pt'}; "
                    "class_embed: 2 of 4 classes matched by name, the rest "
                    "re-initialised")  # fmt: skip


@FORMS
def test_the_same_classes_in_another_order(config, tmp_path):
    model, said = start(write("last.pt", tmp_path, config), config, ("spoon", "cup", "plate"))
    there = fresh(config, seed=7)
    found, given = (
        m.state_dict()[n]
        for m in (model, there)
        for n in m.state_dict()
        if n.endswith("class_embed.weight")
    )
    assert torch.equal(found[:3], given[[2, 0, 1]])
    assert ";" not in said


@FORMS
def test_queries_are_taken_as_far_as_they_go(config, tmp_path):
    path, there = write("last.pt", tmp_path, config), fresh(config, seed=7).query_embed.weight
    fewer, said = start(path, replace(config, num_queries=3))
    assert torch.equal(fewer.query_embed.weight, there[:3])
    assert ";" not in said
    more, said = start(path, replace(config, num_queries=8))
    assert torch.equal(more.query_embed.weight[:5], there)
    assert torch.equal(
        more.query_embed.weight[5:], fresh(replace(config, num_queries=8)).query_embed.weight[5:]
    )
    assert said.endswith("; query_embed: 5 of 8 loaded")


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (FAST, replace(FAST, model_options=()), "holds a redetr_n that does not fit this redetr_n: "
                                                "backbone is "
         "(16, 32, 64) there and (32, 64, 128) here, hidden_dim is 32 there and 64 here"),
        (FAST, replace(FAST, model_options=(*FAST.model_options, "dec_layers=6")), "holds a redetr_n "
         "that does not fit this redetr_n: dec_layers is 2 there and 6 here"),
        (FAST, DETR, "holds a redetr_n, a different model from detr_r50; "
                      "use --model redetr_n"),
        (DETR, replace(DETR, model_options=(*DETR.model_options, "nheads=4")), "nheads is 2 there "
                                                                               "and 4 here"),
    ],
)  # fmt: skip
def test_another_model_is_refused(there, here, message, tmp_path):
    with pytest.raises(redetr.InputError, match=re.escape(message)):
        start(write("last.pt", tmp_path, there), here)


@pytest.mark.parametrize("options", [(), ("nheads=4", "hidden_dim=48"), ("dim_feedforward=64",)])
def test_the_remedy_in_a_shell_makes_the_weights_fit(options, tmp_path):
    """A list would otherwise be a pattern, and its spaces would divide it. The options that fit
    already are not named, and kept."""
    path = write("last.pt", tmp_path, FAST)
    begun = ["redetr_n", "--num-queries", "5", "--weights", str(path)]
    asked = parse([*begun, "--model-options", *options]).config
    with pytest.raises(redetr.InputError) as error:
        start(path, asked)
    remedy = error.value.remedy
    assert "'backbone=[16,32,64]' hidden_dim=32" in remedy
    named = {option.partition("=")[0] for option in options}
    assert ("dim_feedforward" in remedy) == ("dim_feedforward" not in named)
    (tmp_path / "config.json").write_text(json.dumps(asked.to_dict()))
    flags = shlex.split(remedy.removeprefix("use "))
    fitting = parse([str(tmp_path), *flags]).config
    model, _ = start(path, fitting)
    assert same(model, fresh(FAST, seed=7))


def test_dilation_and_dropout_may_differ():
    """No tensor depends on them."""
    with torch.device("meta"):
        there = redetr.build("detr_r50", 3)
        here = redetr.build("detr_r50_dc5", 3, dropout=0.3)
    weights = Weights(Path("x.pt"), there.state_dict(), Origin("detr_r50", {}, CLASSES, (1, 2, 3)))
    said = start_from(
        weights, here, TrainConfig(model="detr_r50_dc5", model_options=("dropout=0.3",)), CLASSES
    )
    assert said == "loaded 458 of 458 tensors from x.pt"


def test_a_file_in_which_something_is_missing(tmp_path):
    path = write("last.pt", tmp_path)
    content = torch.load(path, weights_only=True)
    del content["ema"]["input_proj.bias"]
    torch.save(content, path)
    with pytest.raises(
        redetr.InputError, match=r"last\.pt: lacks 1 tensor of this model, such as input_proj\.bias"
    ):
        start(path)


class Hostile:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.bin"])
def test_a_file_that_would_run_code_is_refused(name, tmp_path):
    hostile = {"state_dict": Hostile(tmp_path / "executed")}
    (tmp_path / "zip").mkdir()
    torch.save(hostile, tmp_path / "zip" / name)
    (tmp_path / name).write_bytes(pickle.dumps(hostile))
    for path in (tmp_path / name, tmp_path / "zip" / name):
        with pytest.raises(
            redetr.InputError, match=f"{name}: not a checkpoint that can be read safely"
        ):
            start(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["x.onnx", "x.xml", "x.pt2", "config.json"])
def test_what_is_no_checkpoint_says_what_to_give(name, tmp_path):
    (tmp_path / name).write_text('{"model": "redetr_n"}')
    with pytest.raises(redetr.InputError) as told:
        redetr.load(tmp_path / name)
    what = "an exported file: run it with the scripts in examples/export"
    if name == "config.json":
        reason = "torch.save did not write it, or it holds more than tensors and plain values"
        what = f"not a checkpoint that can be read safely ({reason})"
    assert (
        str(told.value)
        == f"{tmp_path / name}: {what}; give best.pt, best.safetensors or the run folder"
    )


def test_a_damaged_checkpoint_says_what_is_wrong(tmp_path):
    torch.save({"weight": torch.arange(30000)}, tmp_path / "best.pt")
    content = bytearray((tmp_path / "best.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(
        redetr.InputError, match=r"read safely \(the checksum of best/data/0 is wrong\); give"
    ):
        redetr.load(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "neither a redetr checkpoint nor a dict"), ({"model": {"a": 1}}, "neither a redetr "
                                                                                "checkpoint nor"),
     ({"weight": torch.zeros(1)}, "backbone weights, but the backbone of detr_r50 is trained "
                                  "from")],
)  # fmt: skip
def test_other_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(redetr.InputError, match=f"x.pt: {message}"):
        start(tmp_path / "x.pt")


def test_no_such_file():
    for name in ("imagenett", "runs/somewhere/best.pt", "mobilenet.pth"):
        with pytest.raises(redetr.InputError, match=f"{name}: no such file"):
            read_weights(name)


def test_a_folder_whose_weights_have_another_name(tmp_path):
    """As the authors' own training leaves it."""
    folder = tmp_path / "dfine_hgnetv2_s_custom"
    folder.mkdir()
    with pytest.raises(redetr.InputError) as empty:
        read_weights(folder)
    assert str(empty.value).startswith(f"{folder}: has no weights under a known name (best.pt, ")
    assert str(empty.value).endswith("give a weight file, a run folder or a Transformers folder")
    (folder / "last.pth").write_bytes(b"")
    with pytest.raises(redetr.InputError) as other:
        read_weights(folder)
    assert str(other.value).endswith(f"give the weight file itself, such as {folder / 'last.pth'}")
    (folder / "last.pth").rename(folder / "pytorch_model.bin")
    with pytest.raises(redetr.InputError) as lacks_settings:
        read_weights(folder)
    assert "pytorch_model.bin" not in lacks_settings.value.text
    assert str(lacks_settings.value).endswith(f"such as {folder / 'pytorch_model.bin'}")


def test_random_weights_under_frozen_norms_are_said_to_be_bad():
    config = replace(FAST, weights="none")
    assert starting_point(fresh(config), config, CLASSES) == []
    config = replace(RESNET, weights="none")
    (said,) = starting_point(fresh(config), config, CLASSES)
    assert said.startswith("warning: BatchNorm is frozen, but the weights are random: ")


SMALL_ENCODER = (
    "enc_hidden_dim=32",
    "enc_dim_feedforward=64",
    "hidden_dim=32",
    "nheads=4",
    "dec_layers=1",
)


@pytest.mark.parametrize(
    ("model", "parts"), [("rtdetr_r18", "encoder and decoder"), ("dfine_n", "encoder")]
)
def test_weights_of_a_backbone_leave_the_frozen_norms_of_an_encoder_random(model, parts, tmp_path):
    """Norms that are trained need no warning, as in the recipe of RT-DETR from a backbone."""
    config = TrainConfig(model=model, model_options=SMALL_ENCODER, num_queries=5)
    path = tmp_path / "backbone.pth"
    torch.save(fresh(config, seed=7).backbone.state_dict(), path)
    config = replace(config, weights=str(path))
    said, warning = starting_point(fresh(config), config, CLASSES)
    assert "tensors of the backbone" in said
    assert warning == (
        f"warning: BatchNorm is frozen, but the weights are random in {parts}: give --weights of a "
        "whole detector, or --model-options norm=sync_batch on GPUs"
    )
    trained = replace(config, model_options=(*SMALL_ENCODER, "norm=sync_batch"))
    (said,) = starting_point(fresh(trained), trained, CLASSES)
    assert "tensors of the backbone" in said


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://host/a.pth", "https://host/a.pth: https URLs are not supported; download the"),
        ("s3://bucket", "s3://bucket: s3 URLs are not supported; download the file"),
        ("file:///tmp/a.pth", "file URLs are not supported; give the path without file://"),
    ],
)
def test_weights_at_a_url(source, message):
    with pytest.raises(redetr.InputError, match=message):
        redetr.load(source)
