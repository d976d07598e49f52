"""Writes python.safetensors: one small tensor of each dtype, as Python's safetensors prints it."""

import sys

import safetensors.torch
import torch

plain = [
    "bool", "uint8", "int8", "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32",
    "complex64", "float64", "int64", "uint64", "float8_e4m3fn", "float8_e5m2",
]
packed = ["float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2"]

tensors = {name: torch.arange(6).to(getattr(torch, name)).reshape(2, 3) for name in plain}
tensors |= {name: torch.arange(6, dtype=torch.uint8).view(getattr(torch, name)).reshape(2, 3) for name in packed}
tensors["scalar"] = torch.tensor(1.5)
tensors["empty"] = torch.zeros(0, 3)
tensors['quote" tab\t bell\a é 漢'] = torch.arange(3).float()
safetensors.torch.save_file(tensors, sys.argv[1], metadata={"format": "pt"})
