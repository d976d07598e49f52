"""torch.optim on the weights and gradients of optimizers_test.cpp.

usage: python optimizers.py folder

The folder holds cases.json, a list of {"name", "options", "shapes", "sizes"}: `name` of torch.optim; and raw
float32: <shapes>.start, all weights one behind the other, and <shapes>.<world>, the gradients of each step so, where
`shapes` is `all` or `matrices`. Written is <number of the case>.<world>: all weights after each step of SHOWN.
"""

import json
import sys
from pathlib import Path

import torch

SHOWN = (1, 10, 100, 200)
folder = Path(sys.argv[1])
torch.set_num_threads(1)


def read(name):
    return torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=torch.float32)


def pieces(flat, shapes):
    split = flat.split([torch.Size(shape).numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(split, shapes, strict=True)]


def run(case, world):
    start = read(case["shapes"] + ".start")
    gradients = read(f"{case['shapes']}.{world}").view(-1, start.numel())
    shapes = case["sizes"]
    weights = [piece.clone().requires_grad_() for piece in pieces(start, shapes)]
    optimizer = getattr(torch.optim, case["name"])(weights, **case["options"])
    shown = []
    for step, flat in enumerate(gradients, 1):
        for weight, gradient in zip(weights, pieces(flat, shapes), strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        if step in SHOWN:
            shown += [weight.detach().clone().flatten() for weight in weights]
    return torch.cat(shown)


for number, case in enumerate(json.loads((folder / "cases.json").read_text())):
    for world in (1, 2):
        (folder / f"{number}.{world}").write_bytes(bytes(run(case, world).view(torch.uint8).tolist()))
