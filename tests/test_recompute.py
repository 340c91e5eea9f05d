"""Activations that are computed again in the backward pass: the same gradients to the bit, and nothing kept of them.

pytest tests/test_recompute.py
"""

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoorbench.models.preact_resnet import BasicBlock, Block, Bottleneck


class Plain(nn.Module):
    """The same layers as a block's, called without recomputing."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        names = [name for name in ("1", "2", "3") if hasattr(self.block, f"conv{name}")]
        parts = [(getattr(self.block, f"bn{name}"), getattr(self.block, f"conv{name}")) for name in names]
        active = F.relu(parts[0][0](x))
        out = parts[0][1](active)
        for norm, conv in parts[1:]:
            out = conv(F.relu(norm(out)))
        side = x if self.block.shortcut is None else self.block.shortcut(active)
        return out + side


def gradients(net: nn.Module, x: Tensor, twice: bool = False) -> list[Tensor]:
    """Of a loss in x and every weight; `twice`: of the squared length of those."""
    x = x.clone().requires_grad_()
    wanted = [x, *net.parameters()]
    found = torch.autograd.grad(net(x).float().square().mean(), wanted, create_graph=twice)
    if twice:
        found = torch.autograd.grad(sum(part.square().sum() for part in found), wanted)
    return list(found)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("twice", [False, True])
def test_gradients_are_the_same_to_the_bit(block: Block, stride: int, twice: bool) -> None:
    torch.manual_seed(0)
    net = block(8, 8, stride)
    other = Plain(copy.deepcopy(net))
    x = torch.randn(4, 8, 8, 8)
    for ours, theirs in zip(gradients(net, x, twice), gradients(other, x, twice), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # running statistics have moved once, as by one forward pass


def test_in_half_precision_too() -> None:
    torch.manual_seed(0)
    net = BasicBlock(8, 16, 2)
    other = Plain(copy.deepcopy(net))
    x = torch.randn(4, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients(net, x), gradients(other, x)
    assert all(map(torch.equal, ours, theirs))


def test_weights_lent_for_one_pass_are_the_ones_recomputed_with() -> None:
    torch.manual_seed(0)
    net = BasicBlock(8, 8, 1)
    other = Plain(copy.deepcopy(net))
    x = torch.randn(4, 8, 8, 8)
    lent = {name: (weight + 0.1).detach().requires_grad_() for name, weight in net.named_parameters()}
    ours = torch.autograd.grad(functional_call(net, lent, (x,)).square().mean(), lent.values())
    named = {f"block.{name}": weight for name, weight in lent.items()}
    theirs = torch.autograd.grad(functional_call(other, named, (x,)).square().mean(), named.values())
    assert all(map(torch.equal, ours, theirs))


def test_nothing_of_the_activation_outlives_the_forward_pass() -> None:
    net, seen = BasicBlock(8, 8, 1), []
    for conv in (net.conv1, net.conv2):
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(weakref.ref(inputs[0].untyped_storage())))
    out = net(torch.randn(4, 8, 8, 8))
    assert [ref() for ref in seen] == [None, None]
    out.mean().backward()
    assert net.conv1.weight.grad is not None


def test_a_norm_that_is_hooked_or_another_is_only_called() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 8, 8)
    hooked = BasicBlock(8, 8, 1)
    hooked.bn2.register_forward_hook(lambda _, __, out: 2 * out)
    other = BasicBlock(8, 8, 1)
    other.bn2 = nn.GroupNorm(2, 8)
    for net in (hooked, other):
        ours, theirs = gradients(net, x), gradients(Plain(copy.deepcopy(net)), x)
        assert all(map(torch.equal, ours, theirs))


def test_weights_changed_before_the_backward_pass_are_told() -> None:
    net = BasicBlock(8, 8, 1)
    loss = net(torch.randn(4, 8, 8, 8)).mean()
    with torch.no_grad():
        net.bn2.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_graph_that_is_kept_can_be_gone_through_again() -> None:
    net = BasicBlock(8, 8, 1)
    loss = net(torch.randn(4, 8, 8, 8)).square().mean()
    first, second = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
