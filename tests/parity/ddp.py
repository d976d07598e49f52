"""PyTorch's DDP on the same model and data as ddp_test.cpp: writes .grad after each backward.

usage: python -m torch.distributed.run --nproc-per-node N ddp.py folder steps rows

Reads folder/{parameters,data,target}.bin as raw float32, float32, int64; rank 0 writes
folder/gradients.bin, raw float32: all parameters in order of registration, step by step.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

folder, steps, rows = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(5, 7)
        self.second = torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def read(name, dtype):
    return torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=dtype)


net = Mlp()
flat = read("parameters.bin", torch.float32)
with torch.no_grad():
    offset = 0
    for parameter in net.parameters():
        parameter.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
        offset += parameter.numel()
data = read("data.bin", torch.float32).view(-1, 5)
target = read("target.bin", torch.int64)

model = DistributedDataParallel(net)
written = []
for step in range(steps):
    begin = (step * world + rank) * rows
    loss = F.cross_entropy(model(data[begin : begin + rows]), target[begin : begin + rows])
    net.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            written.append(parameter.grad.flatten().clone())
            parameter.sub_(parameter.grad * 0.5)
if rank == 0:
    (folder / "gradients.bin").write_bytes(bytes(torch.cat(written).view(torch.uint8).tolist()))
dist.destroy_process_group()
