"""Every field of Transformers' configurations is read, shown by the weights, refused, or without
effect on what a model computes in evaluation: a new field has to be put into one of the sets."""

from pathlib import Path
from typing import Any

import pytest

from redetr.errors import InputError
from redetr.weights import detr_config, dfine, rtdetr

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

FILE = Path("config.json")


def names(text: str) -> set[str]:
    return set(text.split())


SHOWN_BY_WEIGHTS = names("""
    d_model decoder_ffn_dim decoder_in_channels decoder_layers decoder_n_levels depth_mult depths
    embedding_size encoder_ffn_dim encoder_hidden_dim encoder_in_channels encoder_layers head_dim
    hidden_expansion hidden_sizes layer_type max_num_bins num_channels num_queries reg_scale
    stage_in_channels stage_kernel_size stage_light_block stage_mid_channels stage_names
    stage_num_blocks stage_numb_of_layers stage_out_channels stem_channels up
    use_learnable_affine_block out_features out_indices
    """)
READ = {"decoder_attention_heads", "decoder_method", "decoder_n_points", "encoder_attention_heads"}
READ_IN_DETR = names("""
    activation_function auxiliary_loss backbone backbone_config backbone_kwargs
    decoder_attention_heads dilation dropout encoder_attention_heads eos_coefficient num_channels
    position_embedding_type use_timm_backbone
    """)
# The costs of matching, weights of the loss, noise, dropout, frozen norms, and initial values.
OF_TRAINING = names("""
    activation_dropout attention_dropout auxiliary_loss bbox_cost bbox_loss_coefficient
    box_noise_scale class_cost decoder_layerdrop dice_loss_coefficient dropout encoder_layerdrop
    eos_coefficient focal_loss_alpha focal_loss_gamma freeze_backbone_batch_norms giou_cost
    giou_loss_coefficient init_std init_xavier_std initializer_bias_prior_prob initializer_range
    label_noise_ratio mask_loss_coefficient matcher_alpha matcher_bbox_cost matcher_class_cost
    matcher_gamma matcher_giou_cost num_denoising use_focal_loss weight_loss_bbox weight_loss_ddf
    weight_loss_fgl weight_loss_giou weight_loss_vfl
    """)
# `anchor_image_size` is the only size that a model then takes, with the positions that it has
# without. Heads that are not tied to the decoder's are not used.
WITHOUT_EFFECT = {
    "anchor_image_size",
    "backbone",
    "backbone_kwargs",
    "disable_custom_kernels",
    "is_encoder_decoder",
    "tie_word_embeddings",
    "use_pretrained_backbone",
    "use_timm_backbone",
}

REAL_TIME = {
    "RTDetrConfig": (rtdetr.options_from_config, rtdetr.SUPPORTED),
    "RTDetrV2Config": (rtdetr.options_from_config, rtdetr.SUPPORTED),
    "DFineConfig": (dfine.options_from_config, rtdetr.SUPPORTED | dfine.SUPPORTED),
}
BACKBONES = {
    "RTDetrResNetConfig": (rtdetr.options_from_config, rtdetr.SUPPORTED_BACKBONE),
    "HGNetV2Config": (dfine.options_from_config, dfine.SUPPORTED_BACKBONE),
}


def own_fields(name: str) -> dict[str, Any]:
    """The fields with their defaults that not all configurations have."""
    config = getattr(transformers, name)().to_dict()
    for common in transformers.PretrainedConfig().to_dict():
        config.pop(common, None)
    return config


def another(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[::-1] + value
    return f"{value}2" if isinstance(value, str) else (value or 0) + 1


@pytest.mark.parametrize("name", REAL_TIME)
def test_fields_of_real_time_models(name):
    reader, supported = REAL_TIME[name]
    fields = own_fields(name)
    known = SHOWN_BY_WEIGHTS | READ | OF_TRAINING | WITHOUT_EFFECT | {"backbone_config", "eval_idx"}
    assert fields.keys() - known - supported.keys() == set()
    model_type = getattr(transformers, name).model_type
    # A file that leaves a field out means the default of Transformers.
    written = {key: value for key, value in fields.items() if key != "backbone_config"}
    options = reader(FILE, written | {"model_type": model_type})
    assert reader(FILE, {"model_type": model_type}) == options
    for key, value in supported.items():
        if key in fields:
            with pytest.raises(InputError, match=f"^config.json: {key} is "):
                reader(FILE, {"model_type": model_type, key: another(value)})


@pytest.mark.parametrize("name", BACKBONES)
def test_fields_of_their_backbones(name):
    reader, supported = BACKBONES[name]
    fields = own_fields(name)
    assert fields.keys() - SHOWN_BY_WEIGHTS - OF_TRAINING - supported.keys() == set()
    for key, value in supported.items():
        assert fields.get(key, value) == value
        with pytest.raises(InputError, match=f"^config.json: {key} is "):
            reader(FILE, {"backbone_config": {key: another(value)}})


@pytest.mark.parametrize("name", ["DetrConfig", "TableTransformerConfig"])
def test_fields_of_detr(name):
    fields = own_fields(name)
    known = SHOWN_BY_WEIGHTS | READ_IN_DETR | OF_TRAINING | WITHOUT_EFFECT
    assert fields.keys() - known == set()
    fields.pop("backbone_config", None)
    assert detr_config.options_from_config({}) == detr_config.options_from_config(fields)
