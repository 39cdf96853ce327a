"""Named runs: each recipe is a function that returns a `TrainConfig`, which flags override."""

from collections.abc import Callable
from dataclasses import replace

from redetr.choices import PATIENCE, WEIGHTS_REQUIRED
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.weights.published import PUBLISHED


def _original(model: str) -> TrainConfig:
    """The published recipe of DETR for one of its variants."""
    return TrainConfig(
        model=model,
        epochs=300,
        batch_size=16,
        optimizer="adamw",
        lr=1e-4,
        lr_backbone=1e-5,
        weight_decay=1e-4,
        clip_norm=0.1,
        schedule="step",
        warmup=0.0,
        drop_at=2 / 3,
        ema_decay=0.0,
        weights="imagenet",
    )


def detr_r50() -> TrainConfig:
    """The published recipe of DETR-R50: 300 epochs, with a drop after 200.

    It reached 40.6 AP on COCO; the often quoted 42.0 AP took 500 epochs.

    redetr train detr_r50 --data COCO --class-normalization per_rank
    """
    return _original("detr_r50")


def detr_r50_dc5() -> TrainConfig:
    """DETR-DC5-R50, the published recipe."""
    return _original("detr_r50_dc5")


def detr_r101() -> TrainConfig:
    """DETR-R101, the published recipe."""
    return _original("detr_r101")


def detr_r101_dc5() -> TrainConfig:
    """DETR-DC5-R101, the published recipe."""
    return _original("detr_r101_dc5")


def _panoptic(model: str) -> TrainConfig:
    """The published second stage of a panoptic DETR: 25 epochs of the mask head alone."""
    return replace(
        _original(model),
        masks=True,
        weights=None,
        freeze=("detr",),
        epochs=25,
        drop_at=15 / 25,
    )


def detr_r50_panoptic() -> TrainConfig:
    """Masks for a DETR-R50 trained on things and stuff: give --weights RUN; 25 epochs.

    The published training of panoptic DETR (43.4 PQ) has two stages: 300 epochs of boxes, of things
    and stuff, and then the mask head with the detector as it is.

    redetr train detr_r50 --data COCO_PANOPTIC --output runs/boxes

    redetr train detr_r50_panoptic --data COCO_PANOPTIC --weights runs/boxes
    """
    return _panoptic("detr_r50_panoptic")


def detr_r50_dc5_panoptic() -> TrainConfig:
    """Masks for a DETR-DC5-R50, as `detr_r50_panoptic`."""
    return _panoptic("detr_r50_dc5_panoptic")


def detr_r101_panoptic() -> TrainConfig:
    """Masks for a DETR-R101, as `detr_r50_panoptic`."""
    return _panoptic("detr_r101_panoptic")


def detr_r50_panoptic_finetune() -> TrainConfig:
    """Panoptic DETR-R50 from its COCO weights (downloaded): things and stuff of your own.

    All of it is trained at once; the schedule is that of `detr_r50_finetune`.
    """
    return replace(
        detr_r50_finetune(),
        model="detr_r50_panoptic",
        masks=True,
        weights="facebook/detr-resnet-50-panoptic",
    )


def detr_tiny() -> TrainConfig:
    """The faithful variant scaled down (2 M parameters, stride 16): shows how slowly it learns."""
    return TrainConfig(
        model="detr_r50",
        epochs=10,
        num_queries=25,
        lr=1e-3,
        weight_decay=1e-4,
        clip_norm=0.1,
        model_options=(
            "backbone=[32, 64, 128]",
            "hidden_dim=128",
            "enc_layers=2",
            "dec_layers=3",
            "dim_feedforward=512",
            "dropout=0.0",
        ),
    )


def detr_r50_finetune() -> TrainConfig:
    """DETR-R50 from its COCO weights (downloaded): for 100 to 5,000 of your own images.

    The length follows the number of images; the run ends early if AP has not
    risen for a quarter of it.
    """
    return replace(
        _original("detr_r50"),
        weights="facebook/detr-resnet-50",
        epochs=0.0,
        lr=5e-5,
        lr_backbone=5e-6,
        schedule="cosine",
        warmup=0.04,
        ema_decay=None,
        patience=PATIENCE,
    )


def detr_table() -> TrainConfig:
    """Table Transformer from ImageNet weights, 20 epochs of PubTables-1M.

    The published recipe, but for its schedule: a cosine instead of a factor of 0.9 in each epoch.
    """
    return replace(_original("detr_table"), epochs=20, batch_size=2, lr=5e-5, schedule="cosine")


def detr_table_finetune() -> TrainConfig:
    """Table Transformer from its published weights (downloaded): tables on your own pages.

    The schedule is that of `detr_r50_finetune`.
    """
    return replace(
        detr_r50_finetune(), model="detr_table", weights="microsoft/table-transformer-detection"
    )


def redetr_n() -> TrainConfig:
    """Nano, from scratch: minutes on a CPU. Measured numbers are in the README."""
    return TrainConfig(model="redetr_n", lr=6e-3)


def redetr_mobile() -> TrainConfig:
    """EfficientNet-Lite0 from ImageNet weights (extra `imagenet`): minutes on a CPU.

    A third of the learning rate of `redetr_n`, which trains from scratch.
    """
    return TrainConfig(model="redetr_mobile", lr=2e-3, weights="imagenet", patience=PATIENCE)


def redetr_n_finetune() -> TrainConfig:
    """Nano from your own run on similar images: give --weights RUN.

    A lower learning rate; ends early without progress.
    """
    return replace(redetr_n(), weights=WEIGHTS_REQUIRED, lr=5e-4, patience=PATIENCE)


def rtdetr_r18() -> TrainConfig:
    """RT-DETR-R18 from ImageNet weights, 72 epochs of COCO: give --weights FILE; GPUs only.

    The published training (46.4 AP), from timm's resnet18d_ra2-48a79e06.pth instead of the
    authors' backbone. Deviations: images of one size, where the authors draw 480 to 800 px for each
    batch, and this project's class loss instead of the varifocal one.

    torchrun --nproc-per-node 4 -m redetr train rtdetr_r18 --data COCO --weights FILE
    """
    return replace(
        rtdetr_r18_finetune(),
        weights=None,
        epochs=72,
        batch_size=16,
        schedule="constant",
        warmup=0.004,
        augment="strong",
        patience=0,
        model_options=("norm=sync_batch",),
    )


def rtdetr_r18_finetune() -> TrainConfig:
    """RT-DETR-R18 from its COCO weights (downloaded): for your own images.

    Its published rates; the length follows the number of images, and the run ends early if AP
    has not risen for a quarter of it.
    """
    return TrainConfig(
        model="rtdetr_r18",
        weights="PekingU/rtdetr_r18vd",
        optimizer="adamw",
        lr=1e-4,
        lr_backbone=1e-5,
        weight_decay=1e-4,
        clip_norm=0.1,
        ema_decay=0.9999,
        patience=PATIENCE,
        denoising=5,
    )


def _dfine_finetune(size: str, hub_name: str, lr: float, lr_backbone: float) -> TrainConfig:
    """The published settings of a D-FINE, at rates for a batch of 16."""
    return replace(
        rtdetr_r18_finetune(),
        model=f"dfine_{size}",
        weights=f"ustc-community/dfine-{hub_name}-coco",
        lr=lr,
        lr_backbone=lr_backbone,
        weight_decay=1.25e-4,
    )


def dfine_n_finetune() -> TrainConfig:
    """D-FINE-N from its COCO weights (downloaded): for your own images, also on a CPU.

    Its published rates, for a batch of 16; the schedule is that of `rtdetr_r18_finetune`.
    """
    return _dfine_finetune("n", "nano", 1e-4, 5e-5)


def dfine_s_finetune() -> TrainConfig:
    """D-FINE-S from its COCO weights, as `dfine_n_finetune`."""
    return _dfine_finetune("s", "small", 1.25e-4, 6.25e-5)


def dfine_m_finetune() -> TrainConfig:
    """D-FINE-M from its COCO weights, as `dfine_n_finetune`."""
    return _dfine_finetune("m", "medium", 1.25e-4, 1.25e-5)


def dfine_l_finetune() -> TrainConfig:
    """D-FINE-L from its COCO weights, as `dfine_n_finetune`."""
    return _dfine_finetune("l", "large", 1.25e-4, 6.25e-6)


def dfine_x_finetune() -> TrainConfig:
    """D-FINE-X from its COCO weights, as `dfine_n_finetune`."""
    return _dfine_finetune("x", "xlarge", 1.25e-4, 1.25e-6)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        detr_r50,
        detr_r50_dc5,
        detr_r101,
        detr_r101_dc5,
        detr_table,
        detr_r50_panoptic,
        detr_r50_dc5_panoptic,
        detr_r101_panoptic,
        detr_r50_finetune,
        detr_r50_panoptic_finetune,
        detr_table_finetune,
        detr_tiny,
        redetr_n,
        redetr_n_finetune,
        redetr_mobile,
        rtdetr_r18,
        rtdetr_r18_finetune,
        dfine_n_finetune,
        dfine_s_finetune,
        dfine_m_finetune,
        dfine_l_finetune,
        dfine_x_finetune,
    )
}


def get_recipe(name: str) -> TrainConfig:
    """The settings of a named recipe. Raises InputError for an unknown name; if it is that of a
    model, with the recipe to train it by."""
    if name in RECIPES:
        return RECIPES[name]()
    recipe = _recipe_for(name)
    if recipe is not None:
        raise InputError(f"{name} is a model, not a recipe", remedy=f"use {recipe}")
    raise InputError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")


def _recipe_for(model: str) -> str | None:
    """The recipe of a model by another name, with the flags that it needs; None if there is no
    published model of that name."""
    finetune = f"{model}_finetune"
    if finetune in RECIPES:
        return finetune
    if model not in PUBLISHED:
        return None
    weights = PUBLISHED[model].origin or "FILE"
    return f"rtdetr_r18_finetune --model {model} --weights {weights}"
