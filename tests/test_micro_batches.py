"""`--batch-size auto`: as few micro-batches as the memory holds, which give the same gradient."""

import json
import math
import mmap
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import SMALL, train_arguments
from hypothesis import given, settings
from hypothesis import strategies as st

import redetr
from redetr import micro_batches
from redetr.cli import main, parse_command
from redetr.commands.recipe import with_micro_batches
from redetr.config import TrainConfig
from redetr.data.formats.digits import DigitsDataset
from redetr.data.loader import Samples
from redetr.data.transforms import augmentation, final_size
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.micro_batches import (
    choose_accumulation,
    largest_canvas,
    largest_fitting,
    memory_errors,
    meter_of,
)
from redetr.preparation import prepare
from redetr.trial_choices import TrialChoices, read_trials
from redetr.verification import verify

CPU = torch.device("cpu")
QUICK = TrainConfig(
    model_options=tuple(SMALL),
    batch_size=12,
    accumulate=0,
    steps=2,
    eval_every=2,
    image_size=64,
    device="cpu",
    precision="fp32",
    num_workers=0,
)


class Meter:
    """A device of which each image takes 100 bytes."""

    def __init__(self, limit: float):
        self._limit = limit
        self.images: list[int] = []

    def limit(self) -> float:
        return self._limit

    def peak(self, work) -> float:
        sizes = []
        before = micro_batches._Trial._batch

        def noted(trial, number, dtype):
            sizes.append(number)
            return before(trial, number, dtype)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(micro_batches._Trial, "_batch", noted)
            work()
        assert len(sizes) == 2 and len(set(sizes)) == 1  # two equal micro-batches
        self.images.append(sizes[0])
        return 100.0 * sizes[0]


@pytest.fixture
def memory(monkeypatch):
    """Sets how many bytes the device has."""

    def set_memory(limit: float) -> Meter:
        meter = Meter(limit)
        monkeypatch.setattr(micro_batches, "meter_of", lambda device: meter)
        return meter

    return set_memory


@settings(max_examples=40, deadline=None)
@given(
    most=st.integers(1, 200),
    base=st.floats(0, 1000),
    slope=st.floats(0.1, 100),
    limit=st.floats(1, 5000),
)
def test_the_largest_number_that_fits_is_found(most, base, slope, limit):
    tried = []

    def peak(number: int) -> float:
        tried.append(number)
        return base + slope * number

    fits = [number for number in range(1, most + 1) if base + slope * number <= limit]
    assert abs(largest_fitting(most, peak, limit) - max(fits, default=0)) <= (
        1 if any(math.isclose(base + slope * n, limit) for n in range(1, most + 1)) else 0
    )
    over = [number for number in tried if base + slope * number > limit * (1 + 1e-9)]
    assert len(over) <= 1  # and that one before a line through two of them tells


def test_a_full_gpu_is_taken_as_such():
    assert largest_fitting(16, lambda number: math.inf if number > 5 else 1.0, 10.0) == 5


def test_the_gradient_is_that_of_the_whole_batch(memory):
    """Of a batch of twelve images, half of which have no object."""
    memory(350)
    result = verify(replace(QUICK, data="random"))
    assert result.accumulate == 4
    assert not result.failed


def test_a_run_says_and_keeps_its_choice(memory, shared_coco, tmp_path, capsys):
    meter = memory(150)
    arguments = train_arguments(shared_coco, tmp_path / "run", steps=1, batch_size="auto")
    main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert (
        "16 micro-batches of 1 image per rank: 0.00015 MB of CPU memory can hold 1 image of 64x64 "
        "px at a time (--accumulate 16 skips this trial)" in said
    )
    assert meter.images == [1, 2]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["batch_size"], config["accumulate"]) == (16, 16)
    main(["train", str(tmp_path / "run"), "--resume"])
    assert meter.images == [1, 2]  # nothing was tried again
    assert json.loads((tmp_path / "run" / "config.json").read_text())["accumulate"] == 16


def test_the_command_that_began_a_run_resumes_it_with_the_same_micro_batches(
    memory, shared_coco, tmp_path
):
    """Restarts repeat it. Another trial may choose another number, which rounds differently."""
    memory(150)
    arguments = train_arguments(shared_coco, tmp_path / "run", steps=1, batch_size="auto")
    command = [*map(str, arguments), "--resume"]
    main(command)
    meter = memory(1600)
    main(command)
    assert meter.images == []
    file = tmp_path / "run" / "config.json"
    assert json.loads(file.read_text())["accumulate"] == 16
    assert read_trials(file) == TrialChoices(1, accumulate=16)


@pytest.mark.parametrize(
    "recorded",
    [
        None,  # by an earlier version
        {"world_size": 2, "accumulate": 16},
        {"world_size": 1, "accumulate": None},  # the user gave the number of micro-batches
    ],
)
def test_what_no_trial_on_as_many_ranks_chose_is_chosen_anew(
    recorded, memory, shared_coco, tmp_path, capsys
):
    memory(150)
    arguments = train_arguments(shared_coco, tmp_path / "run", steps=1, batch_size="auto")
    command = [*map(str, arguments), "--resume"]
    main(command)
    file = tmp_path / "run" / "config.json"
    settings = json.loads(file.read_text())
    settings["trials"] = recorded
    file.write_text(json.dumps(settings))
    memory(250)
    capsys.readouterr()
    main(command)
    said = " ".join(capsys.readouterr().err.split())
    expected = "chosen anew: the run had 16 per rank, and it records no trial with 1 rank"
    assert expected in said
    assert "8 micro-batches of 2 images per rank" in said
    assert read_trials(file) == TrialChoices(1, accumulate=8)


def test_a_run_folder_chooses_anew_on_another_number_of_ranks(
    memory, shared_coco, tmp_path, capsys
):
    """Its config.json holds the number that a trial chose as it holds one that was given."""
    memory(150)
    folder = tmp_path / "run"
    arguments = train_arguments(shared_coco, folder, steps=1, batch_size="auto")
    main([str(argument) for argument in arguments])
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    settings["trials"] = {"world_size": 2, "accumulate": 16}
    file.write_text(json.dumps(settings))
    new = parse_command(["train", str(folder), "--output", str(tmp_path / "new"), "--resume"])
    assert new.config.accumulate == 16
    assert parse_command(["verify", str(folder)]).config.accumulate == 16
    given = parse_command(["train", str(folder), "--resume", "--accumulate", "16"])
    assert given.config.accumulate == 16
    memory(250)
    capsys.readouterr()
    main(["train", str(folder), "--resume"])
    said = " ".join(capsys.readouterr().err.split())
    assert "chosen anew: the run had 16 per rank, and it records no trial with 1 rank" in said
    assert read_trials(file) == TrialChoices(1, accumulate=8)


def test_a_number_that_is_given_later_is_not_taken_for_that_of_a_trial(
    memory, shared_coco, tmp_path
):
    memory(150)
    arguments = train_arguments(shared_coco, tmp_path / "run", steps=1, batch_size="auto")
    main([str(argument) for argument in arguments])
    main(["train", str(tmp_path / "run"), "--resume", "--accumulate", "2"])
    assert read_trials(tmp_path / "run" / "config.json") == TrialChoices(1)


def test_damaged_choices_are_none(tmp_path):
    file = tmp_path / "config.json"
    wrong = ({"threads": "2"}, {"threads": 0}, {"accumulate": True}, {"ranks": 1})
    for damaged in ({}, [1], {"world_size": 0}, *({"world_size": 1} | other for other in wrong)):
        file.write_text(json.dumps({"trials": damaged}))
        assert read_trials(file) is None


def test_one_image_that_does_not_fit_is_one_line(memory, shared_coco, tmp_path, capsys):
    memory(99)
    arguments = train_arguments(shared_coco, tmp_path / "run", accumulate=0)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "cannot hold 1 image of 64x64 px; use --recompute, a smaller --image-size" in line
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def prepared():
    config = replace(QUICK, accumulate=1, data="digits")
    data = DigitsDataset("train", size=20)
    state, criterion = prepare(config, Dist(0, 1, CPU), data)
    transform = augmentation("plain", final_size(state.model, 64))
    return state, criterion, Samples(data, transform, 0)


@pytest.mark.parametrize(
    ("limit", "parts"), [(2000, 1), (1200, 1), (1199, 2), (350, 4), (250, 6), (100, 12)]
)
def test_as_few_parts_as_the_memory_holds(limit, parts, prepared, memory, monkeypatch):
    def two_batches(trial, number: int) -> None:
        trial._batch(number, torch.float32)
        trial._batch(number, torch.float32)

    monkeypatch.setattr(micro_batches._Trial, "run", two_batches)
    memory(limit)
    state, criterion, samples = prepared
    chosen, note = choose_accumulation(
        state.config, state.model, criterion, samples, Dist(0, 1, CPU)
    )
    assert chosen == parts
    assert ("can hold 12 images of " in note) == (parts == 1)
    assert note.startswith("1 micro-batch of 12 images per rank: ") == (parts == 1)


@pytest.mark.parametrize(
    ("num_bytes", "device", "text"),
    [
        (6.04e9, torch.device("cuda", 0), "6.0 GB of GPU memory"),
        (0.42e9, CPU, "0.4 GB of CPU memory"),
        (0.05e9, CPU, "50 MB of CPU memory"),
    ],
)
def test_memory_in_words(num_bytes, device, text):
    assert micro_batches._described_memory(num_bytes, device) == text


def test_the_rank_with_the_least_memory_decides(prepared, memory):
    class TwoRanks(Dist):
        def gather(self, items):
            return [*items, (2, 300.0)]

    memory(600)
    state, criterion, samples = prepared
    parts, note = choose_accumulation(
        state.config, state.model, criterion, samples, TwoRanks(0, 2, CPU)
    )
    assert parts == 3  # of two images on each of two ranks
    assert "per rank: 0.0003 MB of CPU memory can hold 2 images of 64x64 px at a time" in note


def test_a_trial_leaves_weights_and_random_numbers_as_they_are(prepared, memory):
    memory(1200)
    state, criterion, samples = prepared
    weights = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    random = torch.get_rng_state()
    choose_accumulation(state.config, state.model, criterion, samples, Dist(0, 1, CPU))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(weights[name], t) for name, t in state.model.state_dict().items())
    assert all(parameter.grad is None for parameter in state.model.parameters())


def test_sizes_and_objects_are_the_largest_of_the_run(prepared):
    state, criterion, samples = prepared
    trial = micro_batches._Trial(state.config, state.model, criterion, samples, (64, 64))
    batch = trial._batch(3, torch.float32)
    assert batch.images.shape == (3, 3, 64, 64)
    assert [len(target["labels"]) for target in batch.targets] == [8, 8, 8]
    with torch.device("meta"):
        faithful = redetr.build("detr_r50", 3)
    transform = augmentation("detr", final_size(faithful, 100))
    drawn = Samples(DigitsDataset("train", size=20), transform, 0)
    sizes = [drawn.size((0, index)) for index in range(20)]
    expected = max(h for h, _ in sizes), max(w for _, w in sizes)
    assert largest_canvas(drawn) == expected


def test_batch_norm_is_refused(prepared, memory):
    memory(1200)
    state, criterion, samples = prepared
    model = torch.nn.ModuleList([state.model, torch.nn.BatchNorm2d(3)])
    with pytest.raises(InputError, match="the model trains BatchNorm, which depends on micro-ba"):
        choose_accumulation(state.config, model, criterion, samples, Dist(0, 1, CPU))


def test_counts_of_each_micro_batch_are_refused(memory, shared_coco, tmp_path):
    """Their number would be part of the loss, and depend on the memory."""
    meter = memory(1200)
    config = replace(QUICK, **normalized_per_rank(shared_coco, tmp_path), accumulate=0)
    expected = "--batch-size auto: --class-normalization per_rank divides by the count of each mic"
    with pytest.raises(InputError, match=expected):
        redetr.train(config)
    assert meter.images == []
    assert not (tmp_path / "run").exists()


def normalized_per_rank(data, folder) -> dict:
    """Settings of a run whose class loss depends on its micro-batches and ranks."""
    return {
        "data": str(data),
        "output": str(folder / "run"),
        "class_normalization": "per_rank",
        "resume": True,
        "steps": 1,
        "pictures": False,
    }


def test_a_run_resumes_with_its_micro_batches_where_they_are_part_of_the_loss(
    shared_coco, tmp_path
):
    config = replace(QUICK, **normalized_per_rank(shared_coco, tmp_path), accumulate=2)
    redetr.train(config)
    expected = "last.pt: saved with accumulate=2, resumed with 3, but --class-normalization per_ra"
    with pytest.raises(InputError, match=expected):
        redetr.train(replace(config, accumulate=3))
    path = tmp_path / "run" / "last.pt"
    saved = torch.load(path, weights_only=True)
    assert saved["world_size"] == 1
    torch.save(saved | {"world_size": 2}, path)
    with pytest.raises(InputError, match="saved by 2 ranks, resumed by 1, but --class-normalizat"):
        redetr.train(config)
    del saved["world_size"]  # as in earlier versions
    torch.save(saved, path)
    redetr.train(config)


def test_a_run_that_trains_batch_norm_resumes_with_its_micro_batches(prepared):
    """Synchronised over ranks, it still sees each micro-batch by itself."""
    state, _, _ = prepared
    state = replace(state, config=replace(state.config, accumulate=2))
    saved = state.to_dict()
    state.restore(Path("last.pt"), saved)
    state.config = replace(state.config, accumulate=4)
    state.restore(Path("last.pt"), saved)
    state.model.norm = torch.nn.SyncBatchNorm(3)
    try:
        with pytest.raises(InputError, match="accumulate=2, resumed with 4, but the model trains"):
            state.restore(Path("last.pt"), saved)
    finally:
        del state.model.norm


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        ("global", "raise --accumulate .the gradient stays the same., or let --batch-size auto"),
        ("per_rank", "a larger --accumulate needs a new run and changes the gradient, because --c"),
    ],
)
def test_what_to_do_where_memory_is_exhausted(normalization, expected, prepared):
    state, _, _ = prepared
    with (
        pytest.raises(InputError, match=f"out of host memory: .*{expected}"),
        memory_errors(state.model, normalization),
    ):
        raise MemoryError


@pytest.mark.skipif(sys.platform != "linux", reason="by what Linux says of a process")
def test_memory_of_a_host():
    meter = meter_of(CPU)
    before = meter.peak(lambda: None)
    size = 50_000_000

    def work() -> None:
        with mmap.mmap(-1, size) as memory:  # no memory that was freed before
            memory.write(bytes(size))

    assert size * 0.9 < meter.peak(work) - before < 3 * size
    assert meter.limit() > before


def test_a_system_that_does_not_state_memory_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(micro_batches._HostMeter, "_STATUS", tmp_path / "none")
    with pytest.raises(InputError, match=r"cannot measure the memory .*; give --batch-size and"):
        meter_of(CPU)


@pytest.mark.parametrize(
    ("words", "rewritten"),
    [
        ("--batch-size auto --steps 1", "--accumulate 0 --steps 1"),
        ("--steps 1 --batch_size=auto", "--steps 1 --accumulate 0"),
        ("--device auto --batch-size 8", "--device auto --batch-size 8"),
    ],
)
def test_how_it_is_written(words, rewritten):
    assert with_micro_batches(words.split()) == rewritten.split()


@pytest.mark.parametrize(
    "words", ["--batch-size auto --accumulate 2", "--accumulate=2 --batch_size=auto"]
)
def test_a_number_of_micro_batches_beside_it_is_refused(words):
    with pytest.raises(InputError, match="--batch-size auto and --accumulate 2 contradict"):
        with_micro_batches(words.split())
    assert with_micro_batches(["--accumulate", "0", "--batch-size=auto"])[-1] == "0"
