"""Weight-normalized modules of PyTorch as checkpoints, and what PyTorch folds them to in float64.

    python pytorch.py FOLDER

writes NAME.safetensors and NAME.expected.safetensors for each spelling and storage type.
"""
import sys
import warnings

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_weight_norm, weight_norm

warnings.simplefilter("ignore")  # the old spelling is deprecated
torch.manual_seed(1)


def modules():
    """(name, module, the tensor that is normalized, dim): square ones, and all kinds of axes."""
    return [
        ("linear", nn.Linear(57, 33), "weight", 0),
        ("square", nn.Linear(16, 16), "weight", 1),
        ("conv", nn.Conv1d(8, 16, 7), "weight", 0),
        ("pos", nn.Conv1d(24, 24, 16, groups=4), "weight", 2),
        ("up", nn.ConvTranspose1d(16, 8, 4), "weight", 0),
        ("image", nn.Conv2d(6, 8, 3), "weight", 1),
        ("whole", nn.Linear(20, 9), "weight", None),
        ("bias", nn.Linear(3, 40), "bias", 0),
        ("lstm", nn.LSTM(5, 10), "weight_hh_l0", 0),
    ]


for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
    for spelling in ("suffixes", "parametrizations"):
        model, names = nn.ModuleDict(), []
        for key, module, name, dim in modules():
            if spelling == "parametrizations":
                parametrizations.weight_norm(module, name, dim)
                list(module.parametrizations[name].parameters())[0].data.mul_(1.7)
            else:
                weight_norm(module, name, dim)
                getattr(module, name + "_g").data.mul_(1.7)
            model[key] = module
            names.append((key, name))
        model.to(dtype)
        stored = {key: value.contiguous() for key, value in model.state_dict().items()}
        model.double()
        for key, name in names:
            if spelling == "parametrizations":
                parametrize.remove_parametrizations(model[key], name)
            else:
                remove_weight_norm(model[key], name)
        path = f"{sys.argv[1]}/{spelling}-{str(dtype).split('.')[1]}"
        save_file(stored, f"{path}.safetensors", {"format": "pt"})
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, f"{path}.expected.safetensors")
