#!/usr/bin/env bash
# One would guess that a network trained by Opacus is in eval mode what any other is: per-sample gradients are the training's affair.
# In eval mode no gradient by pixels can be had of its outputs, whether its weights are frozen or not: its backward hooks ask for
# activations that its forward hooks keep in train mode alone. By weights alone there is one, in train mode by both, and in either
# mode once the hooks are off (`disable_hooks()`, `to_standard_module()`).
# It matters because adversarial examples, reversed triggers and purification read gradients in eval mode, as DP-SGD is tried as a defense
# against poison. The message asks to run forward, which was done.
# Versions: opacus 1.6.0, torch 2.15.0, numpy 2.4.6.
# Source: opacus/grad_sample/grad_sample_module.py: capture_activations_hook returns early unless module.training, and
# capture_backprops_hook does not.
# Seen 2026-11-30 (mode, gradient by):
#   train, pixels: (8, 3, 8, 8)
#   train, weights: (10, 192)
#   eval, pixels: ValueError: No activations detected for <class 'torch.nn.modules.linear.Linear'>, run forward after add_hooks(model)
#   eval, weights: (10, 192)
#   eval, pixels, all weights frozen: the same ValueError
#   eval, pixels, hooks disabled: (8, 3, 8, 8)
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment opacus==1.6.0 torch==2.15.0 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import opacus
import torch
from opacus import GradSampleModule
from torch import nn

print("opacus", opacus.__version__, "torch", torch.__version__)
torch.manual_seed(0)
images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)


def slope(model, of_pixels):
    """The shape of the loss's gradient, or what is raised."""
    pixels = images.clone().requires_grad_()
    try:
        loss = nn.functional.cross_entropy(model(pixels), labels)
        return tuple(torch.autograd.grad(loss, pixels if of_pixels else model._module[1].weight)[0].shape)
    except ValueError as error:
        return f"ValueError: {error}"


def wrapped():
    return GradSampleModule(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))


said = "ValueError: No activations detected for <class 'torch.nn.modules.linear.Linear'>, run forward after add_hooks(model)"
frozen, bare = wrapped().eval().requires_grad_(False), wrapped().eval()
bare.disable_hooks()
for name, model, of_pixels, expected in (
    ("train, pixels", wrapped().train(), True, (8, 3, 8, 8)),
    ("train, weights", wrapped().train(), False, (10, 192)),
    ("eval, pixels", wrapped().eval(), True, said),
    ("eval, weights", wrapped().eval(), False, (10, 192)),
    ("eval, pixels, all weights frozen", frozen, True, said),
    ("eval, pixels, hooks disabled", bare, True, (8, 3, 8, 8)),
):
    found = slope(model, of_pixels)
    print(f"{name}: {found}")
    assert found == expected
PY
