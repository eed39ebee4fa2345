"""Writes optimizer.json, trajectories of PyTorch's optimizers in float64:  python3 optimizer.py > optimizer.json

The parameter groups g and v have rates and decays of their own. The gradients are given numbers, multiples of 1/64, and
no function of the parameters. The first element of v never has one; that of the second is so small that Adam's eps counts.
"""
import json
import random

import torch

STEPS = 50
KEPT = [1, 2, 10, 50]
START = {"g": [1.0, -0.5, 0.0], "v": [0.3, -1.2, 0.0, 2.0, -0.1, 0.7]}
PLAIN = {"g": {"rate": 0.05, "weight_decay": 0.0}, "v": {"rate": 0.02, "weight_decay": 0.0}}
DECAYED = {"g": {"rate": 0.05, "weight_decay": 0.1}, "v": {"rate": 0.02, "weight_decay": 0.03}}

random.seed(3)


def gradient(index, length):
    scales = [0.0, 2.0**-27] if length == len(START["v"]) else []
    scale = scales[index] if index < len(scales) else 1.0
    return scale * random.randint(-96, 128) / 64


gradients = [{name: [gradient(i, len(start)) for i in range(len(start))] for name, start in START.items()}
             for _ in range(STEPS)]


def run(optimizer, groups, **options):
    tensors = {name: torch.tensor(start, dtype=torch.float64) for name, start in START.items()}
    parameters = [{"params": [tensors[n]], "lr": groups[n]["rate"], "weight_decay": groups[n]["weight_decay"]}
                  for n in tensors]
    stepper = getattr(torch.optim, optimizer)(parameters, lr=0.0, **options)
    kept = []
    for step in range(1, STEPS + 1):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[step - 1][name], dtype=torch.float64)
        stepper.step()
        if step in KEPT:
            kept.append({"step": step, **{name: tensor.tolist() for name, tensor in tensors.items()}})
    if "betas" in options:
        options["beta1"], options["beta2"] = options.pop("betas")
    return {"optimizer": optimizer, **groups, **options, "after": kept}


cases = [
    run("SGD", PLAIN, momentum=0.0, dampening=0.0, nesterov=False),
    run("SGD", DECAYED, momentum=0.0, dampening=0.0, nesterov=False),
    run("SGD", PLAIN, momentum=0.9, dampening=0.0, nesterov=False),
    run("SGD", DECAYED, momentum=0.9, dampening=0.25, nesterov=False),
    run("SGD", PLAIN, momentum=0.8, dampening=0.0, nesterov=True),
    run("SGD", DECAYED, momentum=0.8, dampening=0.0, nesterov=True),
    run("Adam", PLAIN, betas=(0.9, 0.999), eps=1e-8),
    run("Adam", DECAYED, betas=(0.9, 0.999), eps=1e-8),
    run("Adam", DECAYED, betas=(0.5, 0.9), eps=1e-3),
    run("AdamW", DECAYED, betas=(0.9, 0.999), eps=1e-8),
    run("AdamW", DECAYED, betas=(0.0, 0.99), eps=1e-8),
]


def lines(name, items):
    return f'"{name}": [\n' + ",\n".join(json.dumps(item) for item in items) + "\n]"


print("{")
print(f'"pytorch": {json.dumps(torch.__version__)},')
print(f'"start": {json.dumps(START)},')
print(lines("gradients", gradients) + ",")
print(lines("cases", cases))
print("}")
