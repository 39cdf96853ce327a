"""RT-DETR and D-FINE in Transformers, at the published sizes, with random weights."""

from typing import Any

from torch import nn

# The depths of the stages of the backbone, and the differences from the defaults, which are those
# of R50.
_RTDETR: dict[str, tuple[list[int], dict[str, Any]]] = {
    "rtdetr_r18": ([2, 2, 2, 2], {"hidden_expansion": 0.5, "decoder_layers": 3}),
    "rtdetr_r50": ([3, 4, 6, 3], {}),
}
_DFINE_S_BACKBONE: dict[str, Any] = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "hidden_sizes": [64, 256, 512, 1024],
    "out_indices": [2, 3, 4],
    "use_learnable_affine_block": True,
}
PEERS = (*_RTDETR, "dfine_s")


def transformers_model(name: str, num_classes: int) -> nn.Module:
    """The detector of Transformers with the architecture that `redetr.MODELS[name]` has.

    It trains without denoising.
    """
    if name == "dfine_s":
        return _dfine_s(num_classes)
    return _rtdetr(name, num_classes)


def freeze_batch_norm(model: nn.Module) -> None:
    """Keeps the statistics and the weights of all BatchNorm, as ours is.

    Transformers' own `freeze_backbone_batch_norms` leaves out the encoder and the decoder.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)


def _rtdetr(name: str, num_classes: int) -> nn.Module:
    import transformers

    depths, settings = _RTDETR[name]
    basic = name == "rtdetr_r18"
    widths = [64, 128, 256, 512] if basic else [256, 512, 1024, 2048]
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic" if basic else "bottleneck",
        depths=depths,
        hidden_sizes=widths,
        out_indices=[2, 3, 4],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=widths[1:],
        num_labels=num_classes,
        num_denoising=0,
        **settings,
    )
    return transformers.RTDetrForObjectDetection(config)


def _dfine_s(num_classes: int) -> nn.Module:
    import transformers

    config = transformers.DFineConfig(
        backbone_config=transformers.HGNetV2Config(**_DFINE_S_BACKBONE),
        encoder_in_channels=[256, 512, 1024],
        decoder_n_points=[3, 6, 3],
        decoder_layers=3,
        depth_mult=0.34,
        hidden_expansion=0.5,
        num_labels=num_classes,
        num_denoising=0,
    )
    return transformers.DFineForObjectDetection(config)
