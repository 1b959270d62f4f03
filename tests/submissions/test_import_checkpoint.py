"""Checkpoints: read without running code, fitted by name, written as submissions that run.

Covers bench.submissions.architectures and bench.submissions.state_dicts.
"""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision import models
from typer.testing import CliRunner

import bench
from bench.cli import app
from bench.core.errors import BenchError, UnavailableError
from bench.data.datasets import first_examples
from bench.evaluation.memory_plugins import memory_registry
from bench.registry.registry import Registry
from bench.submissions.architectures import find_architecture, normalisation
from bench.submissions.import_checkpoint import ImportRequest, write_imported
from bench.submissions.state_dicts import fitting_tensors, read_checkpoint
from bench.training.defense_builder import DefenseBuilder

NET = '''"""A small network."""

from torch import nn


class Net(nn.Module):
    """Two layers with BatchNorm."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x))


def ten():
    return Net(10)
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The file of an architecture, as a user has it."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


@pytest.fixture
def net(source: Path) -> nn.Module:
    torch.manual_seed(0)
    built = find_architecture(f"{source}:Net").build(10)
    built(torch.rand(32, 1, 8, 8))  # the statistics of BatchNorm
    return built.eval()


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS: dict[str, Any] = {
    "plain": lambda state: state,
    "parallel": lambda state: {"state_dict": under("module.", state), "epoch": 9, "lr": 0.1},
    "compiled": lambda state: {"model": under("_orig_mod.module.", state), "optimizer": {"a": 1}},
    "nested": lambda state: {"net": {"ema": under("backbone.", state)}, "arch": "net"},
    "half": lambda state: {n: v.half() if v.is_floating_point() else v for n, v in state.items()},
    "no counters": lambda state: {n: v for n, v in state.items() if "num_batches" not in n},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_gives_the_same_network(
    form: str, net: nn.Module, source: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "net.pth", FORMS[form](net.state_dict()))
    loaded = bench.load_model(path, f"{source}:Net", mean=[0.5], std=[0.25])
    x = torch.rand(5, 1, 8, 8)
    expected = (net.half().float() if form == "half" else net)((x - 0.5) / 0.25)
    torch.testing.assert_close(loaded(x), expected)
    assert not loaded.training


def test_safetensors_and_a_module_of_the_caller_are_taken(net: nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    other = copy.deepcopy(net)
    nn.init.zeros_(other.get_parameter("head.weight"))
    loaded = bench.load_model(tmp_path / "net.safetensors", other)
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(loaded(x), net(x))


class Command:
    """An object whose unpickling would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.marker),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    for content in (Command(tmp_path / "ran"), {"state_dict": {}, "x": Command(tmp_path / "ran")}):
        torch.save(content, path)
        with pytest.raises(BenchError, match="holds more than tensors and is not read"):
            read_checkpoint(path)
    path.write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(BenchError):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for content in (b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "net.pth").write_bytes(content)
        with pytest.raises(BenchError, match=r"net.pth (is no checkpoint|holds more)"):
            read_checkpoint(tmp_path / "net.pth")
    with pytest.raises(UnavailableError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(BenchError, match="holds list; a state dict was expected"):
        read_checkpoint(saved(tmp_path / "net.pth", [1, 2]))


def complaint(content: Any, net: nn.Module, **more: Any) -> str:
    with pytest.raises(BenchError) as refused:
        fitting_tensors(content, net.state_dict(), **more)
    return str(refused.value)


def test_missing_unexpected_and_misshapen_names_are_in_one_message(net: nn.Module) -> None:
    state = under("module.", net.state_dict())
    del state["module.head.bias"]
    state["module.extra"] = torch.zeros(3)
    state["module.head.weight"] = torch.zeros(7, 8)
    found = complaint({"state_dict": state}, net)
    assert "the table 'state_dict', without the prefix 'module.'" in found
    assert "1 missing (head.bias), 1 unexpected (module.extra)" in found
    assert "1 of another shape (head.weight [7, 8] for [10, 8])" in found


def test_tensors_of_a_normalisation_are_named_and_can_be_left_out(net: nn.Module) -> None:
    state = {"normalize.mean": torch.zeros(1), **net.state_dict()}
    found = complaint(state, net)
    assert "1 unexpected (normalize.mean); leave them out with --ignore PATTERN" in found
    assert "--mean and --std" in found
    assert fitting_tensors(state, net.state_dict(), ignore=["normalize.*"]).complete


def test_two_tables_that_fit_are_told_apart_by_key(net: nn.Module) -> None:
    content = {"model": net.state_dict(), "ema": under("module.", net.state_dict())}
    assert "several tables of the checkpoint fit: 'model', 'ema'" in complaint(content, net)
    assert fitting_tensors(content, net.state_dict(), key="ema").prefix == "module."
    assert "no table of tensors 'emma'; it holds model (dict)" in complaint(
        content, net, key="emma"
    ).replace("OrderedDict", "dict")


def test_values_that_are_not_finite_are_refused(net: nn.Module) -> None:
    state = copy.deepcopy(net.state_dict())
    state["head.bias"][3] = torch.nan
    assert "the tensor head.bias of the checkpoint has values" in complaint(state, net)


def test_a_resnet_for_small_images_is_recognised() -> None:
    small = find_architecture("torchvision:resnet18", small_images=True).build(10)
    assert small.get_parameter("conv1.weight").shape == (64, 3, 3, 3)
    with torch.no_grad():
        features = nn.Sequential(*list(small.children())[:5])(torch.zeros(1, 3, 32, 32))
    assert features.shape == (1, 64, 32, 32)
    plain = find_architecture("torchvision:resnet18").build(10)
    assert isinstance(plain, models.ResNet)
    assert "use --small-images for a ResNet with a 3x3 first" in complaint(
        small.state_dict(), plain
    )


def test_models_of_timm_are_built_with_the_classes() -> None:
    pytest.importorskip("timm", reason="timm is not installed; `uv sync --extra timm` brings it")
    built = find_architecture("timm:resnet10t").build(7)
    with torch.no_grad():
        assert built.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(BenchError, match=r"timm has no model 'resnet10tt'\. Did you mean"):
        find_architecture("timm:resnet10tt")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "--arch is 'resnet18'; use torchvision:resnet18"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19'. Did you mean 'resnet1"),
        ("absent.py:Net", "there is no file absent.py"),
        ("{source}:Nett", "defines no 'Nett'. Did you mean 'Net'?"),
    ],
)
def test_an_unknown_architecture_is_named(spec: str, message: str, source: Path) -> None:
    with pytest.raises(BenchError) as refused:
        find_architecture(spec.format(source=source))
    assert message in str(refused.value)


def test_small_images_is_for_resnets_of_torchvision(source: Path) -> None:
    for spec in ("torchvision:alexnet", f"{source}:Net"):
        with pytest.raises(BenchError, match="changes the ResNets of torchvision alone"):
            find_architecture(spec, small_images=True)


def test_a_normalisation_needs_both_of_one_length() -> None:
    assert normalisation((), ()) == ""
    for mean, std in (((0.5,), ()), ((0.5,), (1.0, 1.0)), ((0.5,), (0.0,))):
        with pytest.raises(BenchError, match="one value for each channel was expected of both"):
            normalisation(mean, std)


def test_an_imported_submission_answers_as_the_network(
    net: nn.Module, source: Path, tmp_path: Path
) -> None:
    """Through the card, the weights file and the builder of every submission."""
    path = saved(tmp_path / "my-net.pth", {"state_dict": under("module.", net.state_dict())})
    request = ImportRequest(path, f"{source}:Net", 10, (0.5,), (0.25,))
    folder, module, _ = write_imported(request, "my-net", "digits", tmp_path / "out", "A. Reader")
    registry = Registry.load(tmp_path / "out", allow_unsandboxed=True)
    assert registry.problems == []
    dataset = memory_registry().find("dataset", "digits").value
    built = DefenseBuilder(registry, "my-net", dataset).build()
    x = first_examples(dataset, 20).tensor()
    torch.testing.assert_close(built(x), net((x - 0.5) / 0.25))
    torch.testing.assert_close(module(x), built(x))
    with pytest.raises(BenchError, match="that name no folder of"):
        write_imported(request, "my-net", "digits", folder.parent)


def test_the_command_writes_a_submission_and_says_how_accurate_it_is(
    net: nn.Module, source: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "my-net.pth", under("module.", net.state_dict()))
    words = ["import", str(path), "--arch", f"{source}:ten", "--dataset", "digits"]
    done = CliRunner().invoke(app, [*words, "--folder", str(tmp_path), "--author", "A. Reader"])
    assert done.exit_code == 0, done.output
    assert "9 tensors of the file, without the prefix 'module.'." in done.stderr
    assert "of the first 200 test images of digits correctly." in done.stderr
    assert done.stdout.strip() == str(tmp_path / "my-net")
    first = "then: bench run --threat digits-linf --defense my-net --suite standard (or digits-l2, "
    assert first in done.stderr
    assert (tmp_path / "my-net" / "plugin.py").read_text().startswith('"""A small network."""')
