"""Tied weight-normalized layers of PyTorch, saved by save_model, and the folded files loaded by load_model into the plain model.

    python tied.py save FOLDER
    python tied.py load FOLDER

The first writes SPELLING.safetensors; the second reads SPELLING.folded.safetensors, and SPELLING.converted.safetensors, which has the
other spelling, and compares.
"""
import sys
import warnings

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

warnings.simplefilter("ignore")  # the old spelling is deprecated


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.act, self.out = nn.Linear(6, 10, bias=False), nn.Linear(10, 6), nn.Linear(6, 10, bias=False)


def normalized(spelling):
    """The model with weight norm, whose layers inp and out have the same g and v."""
    torch.manual_seed(1)
    model = Model()
    for layer in (model.inp, model.act, model.out):
        (weight_norm if spelling == "suffixes" else parametrizations.weight_norm)(layer)
    if spelling == "suffixes":
        model.inp.weight_g.data.mul_(1.7)
        model.out.weight_g, model.out.weight_v = model.inp.weight_g, model.inp.weight_v
    else:
        pair, tied = model.inp.parametrizations.weight, model.out.parametrizations.weight
        pair.original0.data.mul_(1.7)
        tied.original0, tied.original1 = pair.original0, pair.original1
    return model


for spelling in ("suffixes", "parametrizations"):
    model, path = normalized(spelling), f"{sys.argv[2]}/{spelling}"
    if sys.argv[1] == "save":
        save_model(model, f"{path}.safetensors")
        continue
    other = "parametrizations" if spelling == "suffixes" else "suffixes"
    converted, fresh = normalized(other), normalized(other)
    for parameter in converted.parameters():
        parameter.data.zero_()
    load_model(converted, f"{path}.converted.safetensors")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    plain = Model()
    plain.out.weight = plain.inp.weight
    load_model(plain, f"{path}.folded.safetensors")
    x = torch.randn(7, 6)
    if spelling == "suffixes":  # its weights are computed by a hook of forward
        model.inp(x), model.act(model.inp(x)), model.out(x)
    for name in ("inp", "act", "out"):
        torch.testing.assert_close(getattr(plain, name).weight, getattr(model, name).weight)
    assert plain.out.weight is plain.inp.weight
