"""PyTorch's DDP on the same model and data as ddp_test.cpp: writes what it finds and leaves at every step.

usage: python ddp.py folder steps rows world_size port

Reads folder/{parameters,data,target}.bin as raw float32, float32, int64; rank r writes folder/seen<r>.bin, raw
float32. For windows of one and of two micro-steps, the first of two under no_sync: the statistics that each forward
finds; .grad after each backward that reduces, all parameters in order of registration; and at the end what the model
says of the first rows when it is evaluated.
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch._dynamo  # as DDP would, in each rank
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

folder, steps, rows, world, port = Path(sys.argv[1]), *map(int, sys.argv[2:6])

# Importing torch takes seconds, so the other ranks are forks of rank 0, which has done it.
rank, others = 0, []
for number in range(1, world):
    child = os.fork()
    if child == 0:
        rank, others = number, []
        break
    others.append(child)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(5, 7)
        self.norm = torch.nn.BatchNorm1d(7)
        self.second = torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.norm(self.first(x))))


def read(name, dtype):
    return torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=dtype)


data = read("data.bin", torch.float32).view(-1, 5)
target = read("target.bin", torch.int64)
seen = []


def train(window):
    net = Normed()
    flat = read("parameters.bin", torch.float32)
    with torch.no_grad():
        offset = 0
        for parameter in net.parameters():
            parameter.copy_(flat[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()
    model = DistributedDataParallel(net)
    note = lambda norm, _: seen.extend([norm.running_mean.clone(), norm.running_var.clone()])
    hook = net.norm.register_forward_pre_hook(note)
    for step in range(steps):
        begin = (step * world + rank) * rows
        last = (step + 1) % window == 0
        with nullcontext() if last else model.no_sync():
            guess = model(data[begin : begin + rows])
            (F.cross_entropy(guess, target[begin : begin + rows]) / window).backward()
        if not last:
            continue
        with torch.no_grad():
            for parameter in net.parameters():
                seen.append(parameter.grad.clone())
                parameter.sub_(parameter.grad * 0.5)
        net.zero_grad()
    hook.remove()
    model.eval()
    with torch.no_grad():
        seen.append(model(data[:rows]))


train(1)
train(2)
flat = torch.cat([one.flatten() for one in seen])
(folder / f"seen{rank}.bin").write_bytes(bytes(flat.view(torch.uint8).tolist()))
dist.destroy_process_group()
sys.exit(any([os.waitpid(child, 0)[1] for child in others]))
