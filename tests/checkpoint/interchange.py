"""Python's side of python_test.cpp: writes files with the libraries that people use, and tells what is in those of accel.

usage: python interchange.py <what> <folder>

  missing    prints the packages that are not installed
  grid       writes grid.safetensors: every dtype and shape of the grid, bytes by a formula
  tell       prints of grid.safetensors and ours.safetensors a line per tensor: name, dtype, shape, SHA-256 of its bytes;
             and their metadata
  model      writes model.safetensors, of a module that `Net` in python_test.cpp is, and sharded/ with an index
  back       loads what is in ours*/ into that module, and compares bit for bit
  optimizer  trains three steps with AdamW, writes them, then three more, and writes where that led
"""

import hashlib
import importlib.util
import json
import os
import sys

what, folder = sys.argv[1:]
if what == "missing":
    print(*[name for name in ("torch", "safetensors", "huggingface_hub") if importlib.util.find_spec(name) is None])
    sys.exit()

import torch
from safetensors import safe_open
from safetensors.torch import save_file

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.float16, torch.bfloat16, torch.int32,
    torch.uint32, torch.float32, torch.float64, torch.int64, torch.uint64, torch.complex64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
]
SHAPES = [[], [0], [1], [3], [2, 3], [0, 3], [2, 0, 4], [1, 1, 1, 1, 2], [7, 5, 3]]


def path(name):
    return os.path.join(folder, name)


def filled(dtype, shape, number):
    """Byte i of tensor k is (31 i + 7 k) mod 251; of bool, that mod 2."""
    count = torch.empty(shape, dtype=dtype).nbytes
    data = (torch.arange(count) * 31 + number * 7) % 251
    if dtype == torch.bool:
        data %= 2
    return data.to(torch.uint8).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def digest(tensor):
    flat = tensor.contiguous().flatten()
    data = bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
    return hashlib.sha256(data).hexdigest()


def net():
    torch.manual_seed(3)
    layers = torch.nn.Module()
    layers.first = torch.nn.Linear(5, 7)
    layers.norm = torch.nn.BatchNorm1d(7)
    layers.second = torch.nn.Linear(7, 3)
    layers.norm.running_mean += torch.rand(7)
    return layers


def forward(layers, x):
    return layers.second(torch.relu(layers.norm(layers.first(x))))


if what == "grid":
    tensors, number = {}, 0
    for dtype in DTYPES:
        for shape in SHAPES:
            if dtype == torch.float4_e2m1fn_x2 and not shape:
                continue  # of two numbers in a byte there is no scalar
            tensors[f"{dtype} {shape}".replace("torch.", "")] = filled(dtype, shape, number)
            number += 1
    save_file(tensors, path("grid.safetensors"), metadata={"format": "pt", "who": "Python", "quote\"": "漢\n"})
elif what == "tell":
    for one in ("grid", "ours"):
        with safe_open(path(f"{one}.safetensors"), "pt") as file:
            print(one, json.dumps(file.metadata(), sort_keys=True), sep="|")
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                print(one, name, str(tensor.dtype).replace("torch.", ""), list(tensor.shape), digest(tensor), sep="|")
elif what == "model":
    from huggingface_hub import save_torch_state_dict

    save_file(net().state_dict(), path("model.safetensors"))
    os.mkdir(path("sharded"))
    save_torch_state_dict(net().state_dict(), path("sharded"), max_shard_size=200)
    assert os.path.exists(path("sharded/model.safetensors.index.json")), os.listdir(path("sharded"))
elif what == "back":
    from huggingface_hub import load_torch_model

    expected = net().state_dict()
    for one in sorted(name for name in os.listdir(folder) if name.startswith("ours")):
        other = net()
        with torch.no_grad():
            for tensor in other.state_dict().values():
                tensor.zero_()
        load_torch_model(other, path(one), strict=True)
        for name, tensor in other.state_dict().items():
            assert digest(tensor) == digest(expected[name]), (one, name)
        print(one, "is the same, bit for bit")
elif what == "optimizer":
    torch.set_num_threads(1)
    model = net()
    adamw = torch.optim.AdamW(
        [
            {"params": [model.first.weight, model.second.weight], "weight_decay": 0.1},
            {"params": [model.first.bias, model.norm.weight, model.norm.bias, model.second.bias], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.8, 0.95),
        fused=True,
    )

    def step(number):
        x = torch.arange(20, dtype=torch.float32).reshape(4, 5).sub(9.5).mul(0.1 + 0.01 * number)
        adamw.zero_grad()
        forward(model, x).square().mean().backward()
        adamw.step()

    for number in range(3):
        step(number)
    save_file(model.state_dict(), path("three.safetensors"))
    torch.save(adamw.state_dict(), path("adamw.pt"))
    for number in range(3, 6):
        step(number)
    save_file(model.state_dict(), path("six.safetensors"))
