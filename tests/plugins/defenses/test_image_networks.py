"""Networks for image data sets: parameter counts, order of layers, and all image sizes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.defenses import _residual_blocks as residual
from plugins.defenses._dropout_cnn import COLOUR, Normalize, dropout_cnn

Make = Callable[[tuple[int, int, int], int], nn.Module]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
SMALL: dict[str, Make] = {
    "dropout-cnn": partial(dropout_cnn, width=4),
    "resnet": partial(residual.resnet, depth=8),
    "se-resnet": partial(residual.se_resnet, depth=8),
    "resnext": partial(residual.resnext, depth=11, cardinality=8, width=4),
    "preresnet": partial(residual.preresnet, depth=8),
    "wide-resnet": partial(residual.wide_resnet, depth=10, widen=2),
    "preact-resnet-18": partial(residual.preact_resnet18, width=4),
}
every_family = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL.keys())


def made(make: Make, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10) -> nn.Module:
    """A module whose statistics and scales differ from those of a new one."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module = make(shape, classes)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                    assert tensor is not None
                    tensor.data.uniform_(0.5, 1.5)
    return module.eval().requires_grad_(False)


def images(rows: int, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.row("M01")
@pytest.mark.parametrize(
    ("make", "classes", "parameters"),
    [
        # arXiv:1512.03385, table 6: 0.27, 0.85 and 1.7 million.
        (residual.resnet, 10, 272_474),
        (partial(residual.resnet, depth=56), 10, 855_770),
        (partial(residual.resnet, depth=110), 10, 1_730_714),
        (residual.resnet, 100, 278_324),
        # The reference implementations of github.com/osmr/imgclsmob.
        (residual.preresnet, 10, 272_282),
        (residual.preresnet, 100, 278_132),
        (residual.se_resnet, 10, 274_847),
        (partial(residual.se_resnet, depth=56), 100, 868_739),
        (partial(residual.resnext, cardinality=32, width=4), 100, 4_868_004),
        # arXiv:1611.05431, table 7: 34.4 and 68.1 million.
        (residual.resnext, 10, 34_426_698),
        (partial(residual.resnext, cardinality=16), 10, 68_155_210),
        # arXiv:1605.07146, tables 4 and 5: 36.5, 35.7 and 17.1 million.
        (residual.wide_resnet, 10, 36_479_194),
        (partial(residual.wide_resnet, depth=40, widen=8), 10, 35_748_314),
        (partial(residual.wide_resnet, depth=16), 10, 17_116_634),
        (residual.preact_resnet18, 10, 11_172_170),
    ],
)
def test_networks_have_the_published_number_of_parameters(
    make: Make, classes: int, parameters: int
) -> None:
    with torch.device("meta"):
        module = make((3, 32, 32), classes)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@pytest.mark.row("M01")
def test_preact_resnet18_has_the_layers_of_the_paper() -> None:
    """The layers of arXiv:1603.05027 one by one: kernels, and norms with two numbers a channel."""
    counted, before = 9 * 3 * 64 + 2 * 512 + 512 * 10 + 10, 64
    for width in (64, 128, 256, 512):
        counted += 9 * before * width + 3 * 9 * width * width + 2 * before + 3 * 2 * width
        counted += before * width if before != width else 0
        before = width
    with torch.device("meta"):
        module = residual.preact_resnet18((3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in module.parameters()) == counted


@pytest.mark.row("M01", "M02")
@every_family
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_network_accepts_every_image_size(make: Make, shape: tuple[int, int, int]) -> None:
    module = made(make, shape, classes=7)
    x = images(4, shape)
    logits = module(x)
    assert logits.shape == (4, 7) and logits.dtype == torch.float32
    assert logits.isfinite().all() and logits.std(0).min() > 0
    assert torch.allclose(module(x[2:3]), logits[2:3], atol=1e-4 * float(logits.abs().max()))
    assert torch.equal(x, images(4, shape)), "a block in place must not reach the images"


@pytest.mark.row("M01")
@pytest.mark.parametrize("side", [8, 28, 32])
def test_a_residual_network_halves_the_image_in_each_stage_but_the_first(side: int) -> None:
    sizes: list[int] = []
    module = made(residual.resnet, (1, side, side))
    for part in module.children():
        if type(part).__name__ == "BasicBlock":
            part.register_forward_hook(lambda _m, _x, out: sizes.append(out.shape[-1]))
    module(images(1, (1, side, side)))
    assert sizes == [side] * 3 + [side // 2] * 3 + [side // 4] * 3


@pytest.mark.row("M01")
def test_a_pre_activation_block_adds_a_function_of_the_rectified_input() -> None:
    block = made(lambda _shape, _classes: residual.PreActivationBlock(6, 6, 1))
    x = torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(2))
    assert isinstance(block, residual.PreActivationBlock) and block.project is None

    def normal(values: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance, weight, bias = (
            tensor.view(1, -1, 1, 1)
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (values - mean) / (variance + 1e-5).sqrt() * weight + bias

    first = F.conv2d(normal(x, block.norm1).clamp(min=0), block.conv1.weight, padding=1)
    second = F.conv2d(normal(first, block.norm2).clamp(min=0), block.conv2.weight, padding=1)
    assert torch.allclose(block(x), x + second, atol=1e-5)
    assert (block(x) < 0).any(), "nothing rectifies the sum"


@pytest.mark.row("M01")
def test_a_pre_activation_shortcut_that_changes_shape_uses_the_rectified_input() -> None:
    block = made(lambda _shape, _classes: residual.PreActivationBlock(4, 8, 2))
    assert isinstance(block, residual.PreActivationBlock) and block.project is not None
    block.conv2.weight.data.zero_()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    active = block.norm1(x).clamp(min=0)
    assert torch.equal(block(x), F.conv2d(active, block.project.weight, stride=2))


@pytest.mark.row("M01")
def test_an_original_block_rectifies_its_sum() -> None:
    block = made(lambda _shape, _classes: residual.basic_block(4, 4, 1))
    norm = block.get_submodule("bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data.zero_()
    norm.bias.data.zero_()
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(block(x), x.clamp(min=0))


@pytest.mark.row("M01")
def test_squeeze_and_excitation_scales_the_residual_and_not_the_shortcut() -> None:
    block = made(lambda _shape, _classes: residual.se_block(16, 16, 1))
    squeeze = block.get_submodule("bn2.1")
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(2)).clamp(min=0)
    for gate, kept in ((-1e4, 0.0), (1e4, 1.0)):  # the sigmoid closed, then open
        bias = squeeze.get_parameter("fc2.bias")
        bias.data.fill_(gate)
        plain = block.get_submodule("bn2.0")
        change = plain(block.get_submodule("conv2")(block_before(block, x)))
        assert torch.allclose(block(x), (x + kept * change).clamp(min=0), atol=1e-6)


def block_before(block: nn.Module, x: Tensor) -> Tensor:
    """The input of the second convolution of an original block."""
    found: Tensor = block.get_submodule("bn1")(block.get_submodule("conv1")(x)).clamp(min=0)
    return found


@pytest.mark.row("M01")
@pytest.mark.parametrize("cardinality", [1, 4])
def test_a_channel_of_a_grouped_convolution_depends_on_its_own_group(cardinality: int) -> None:
    block = residual.bottleneck_block(cardinality, 16)(256, 256, 1)
    kernel = block.get_submodule("conv2").get_parameter("weight")
    assert kernel.shape == (16 * cardinality, 16, 3, 3)


@pytest.mark.row("M01")
def test_an_impossible_depth_is_refused_with_the_possible_ones() -> None:
    with pytest.raises(ValueError, match=r"depth of 21;.* 8, 14"):
        residual.resnet((3, 32, 32), 10, depth=21)
    with pytest.raises(ValueError, match=r"depth of 2;.* 11, 20"):
        residual.resnext((3, 32, 32), 10, depth=2)
    with pytest.raises(ValueError, match=r"depth of 29;.* 10, 16"):
        residual.wide_resnet((3, 32, 32), 10, depth=29)


@pytest.mark.row("M01")
def test_a_wide_network_of_width_one_is_the_pre_activation_one() -> None:
    one = made(partial(residual.wide_resnet, depth=10, widen=1)).state_dict()
    other = made(partial(residual.preresnet, depth=8)).state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.row("M02")
def test_the_small_network_has_dropout_before_both_dense_layers() -> None:
    kinds = [type(part).__name__ for part in dropout_cnn((3, 32, 32), 10).children()]
    assert kinds[:1] == ["Normalize"]
    assert kinds.count("Conv2dNormActivation") == 6 and kinds.count("MaxPool2d") == 3
    assert kinds[-5:] == ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.row("M02", "D02")
def test_dropout_is_off_in_eval_mode_and_on_in_train_mode() -> None:
    module = made(partial(dropout_cnn, width=4))
    x = images(8)
    state = torch.get_rng_state()
    assert torch.equal(module(x), module(x))
    assert torch.equal(torch.get_rng_state(), state), "eval mode draws nothing"
    drops = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    assert [drop.p for drop in drops] == [0.5, 0.5]
    for drop in drops:
        drop.train()
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        assert not torch.equal(module(x), module(x))
        ones = torch.ones(100_000)
        half = drops[0](ones)
    assert set(half.unique().tolist()) == {0.0, 2.0}, "what is kept is doubled: the mean stays"
    assert abs(float(half.mean()) - 1) < 0.02


@pytest.mark.row("M02")
def test_pixels_are_normalised_inside_the_network() -> None:
    layer = Normalize(3)
    mean, deviation = (torch.tensor(values) for values in COLOUR)
    at_mean = mean.view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(layer(at_mean), torch.zeros(2, 3, 4, 4))
    above = (mean + 2 * deviation).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.allclose(layer(above), torch.full((2, 3, 4, 4), 2.0), atol=1e-6)
    assert not list(layer.parameters())
    assert Normalize(1)(images(2)).shape == (2, 1, 8, 8)
