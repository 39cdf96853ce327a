"""What only a GPU can show: `pytest -m gpu`."""

import signal
from dataclasses import replace

import pytest
import torch

import redetr
from redetr import losses, training
from redetr.config import TrainConfig
from redetr.data.loader import to_batch
from redetr.distributed import process_group
from redetr.errors import StoppedError
from redetr.models.recompute import recompute_blocks
from redetr.optim import build_optimizer
from redetr.state import State
from tests.device_losses import assert_losses_of_the_cpu
from tests.distributed.test_exactness import NUM_CLASSES, VARIANTS, global_samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings(
        "ignore:Synchronization debug mode", "ignore:Grad strides do not match"
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize(
    ("form", "options", "recompute"),
    [
        *((form, {}, False) for form in VARIANTS),
        ("detr_r50", {"backbone": "resnet18", "dropout": 0.1}, True),
    ],
)
def test_a_step_waits_for_the_device_in_the_matcher_alone(
    form, options, recompute, optimizer, dtype, monkeypatch
):
    """Any other synchronisation raises."""
    match, waits = losses.match, []

    def allowed(*arguments):
        waits.append(1)
        torch.cuda.set_sync_debug_mode("default")
        chosen = match(*arguments)
        torch.cuda.set_sync_debug_mode("error")
        return chosen

    monkeypatch.setattr(losses, "match", allowed)
    with process_group("cuda") as dist:
        model = redetr.build(form, NUM_CLASSES, **VARIANTS[form] | options)
        model = model.to(dist.device).to(memory_format=torch.channels_last)
        if recompute:
            recompute_blocks(model)
        criterion = redetr.SetCriterion.for_model(model)
        steps = build_optimizer(model, 1e-4, 1e-5, 1e-4, optimizer)
        replica = training.replicate(model, dist)
        batch = to_batch(global_samples(), dist.device, (96, 96))
        counts = criterion.counts(batch.targets)
        divisors = criterion.denominators(counts, counts)
        # The first steps allocate, choose kernels, and let DDP order its buckets by the order of
        # the gradients.
        for mode in ("default", "default", "default", "error"):
            torch.cuda.set_sync_debug_mode(mode)
            try:
                training.train_step(
                    replica, criterion, [batch], [divisors], steps, dtype, clip_norm=0.1
                )
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 4


@pytest.mark.parametrize("form", VARIANTS)
def test_the_losses_of_a_batch_are_those_of_the_cpu(form):
    assert_losses_of_the_cpu(form, torch.device("cuda"))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_resumes(optimizer, shared_coco, tmp_path, monkeypatch):
    """The state of the optimizer is read on the host; its steps need it on the device."""
    config = TrainConfig(
        model="redetr_n",
        data=str(shared_coco),
        steps=6,
        save_every=2,
        eval_every=6,
        batch_size=4,
        image_size=96,
        optimizer=optimizer,
        device="cuda",
        num_workers=1,
        output=str(tmp_path / "run"),
    )
    save = State.save

    def saving(state, folder):
        save(state, folder)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(State, "save", saving)
        with pytest.raises(StoppedError):
            training.train(config)
    assert training.train(replace(config, resume=True))["step"] == 6


@pytest.mark.filterwarnings("default")  # the compiler gives advice
def test_training_compiled_in_bf16_ends(shared_coco, tmp_path):
    config = TrainConfig(
        model="redetr_n",
        data=str(shared_coco),
        steps=2,
        batch_size=4,
        image_size=96,
        device="cuda",
        precision="bf16",
        compile=True,
        recompute=True,
        output=str(tmp_path / "run"),
    )
    assert training.train(config)["step"] == 2
