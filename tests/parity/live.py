"""PyTorch and HF Accelerate on the models and batches of live_test.cpp: writes every loss and what is left at the end.

usage: python live.py folder steps rows port system...

A system is loop, ddp or accelerate, with its number of ranks behind a colon, as in ddp:2; loop and ddp may say in which
precision autocast runs forward, as in ddp-fp16:2: fp16 with a GradScaler that begins high and grows often. For each model of MODELS the
folder holds <model>.parameters and <model>.data, raw float32 (the transformer's data: int64), and <model>.target, raw
int64. Rank r of a system writes <system>.<model>.<optimizer>.<r>: raw float32, the losses of its steps, in fp16 the
scale after each of them, then all parameters in order of registration, and on rank 0 the buffers of floating point. It leaves with 3 where
HF Accelerate is asked for and not installed.
"""

import glob
import os
import sys
from pathlib import Path

import torch
import torch._dynamo  # as DDP would, in each rank
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

folder, steps, rows, port, systems = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5:]

if any(system.startswith("accelerate") for system in systems):
    root = Path(__file__).resolve().parents[2]  # benchmarks/run.sh puts it below build/ where Python has none
    sys.path += glob.glob(str(root / "build/peers/lib/python3*/site-packages"))
    try:
        import accelerate
    except ImportError as error:
        print(error)
        sys.exit(3)


class Mlp(nn.Module):
    row, kind = (11,), torch.float32

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(11, 33)
        self.second = nn.Linear(33, 17)
        self.third = nn.Linear(17, 5)

    def forward(self, x):
        return self.third(F.relu(self.second(torch.tanh(self.first(x)))))


class ConvNet(nn.Module):
    row, kind = (3, 8, 8), torch.float32

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 10, 3, stride=2)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv1(x))), 2)
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48, bias=False)
        self.out = nn.Linear(16, 16)
        self.norm2 = nn.LayerNorm(16)
        self.up = nn.Linear(16, 64)
        self.down = nn.Linear(64, 16)

    def forward(self, x):
        q, k, v = self.qkv(self.norm1(x)).view(-1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, 6, 16))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    row, kind = (6,), torch.int64

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(23, 16)
        self.position = nn.Embedding(6, 16)
        self.block0 = Block()
        self.block1 = Block()
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 23)

    def forward(self, x):
        x = self.token(x) + self.position.weight
        return self.head(self.norm(self.block1(self.block0(x)))).view(-1, 23)


MODELS = {"mlp": Mlp, "convnet": ConvNet, "transformer": Transformer}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2, fused=True),
}


def read(name, kind):
    return torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=kind)


def train(kind, rank, world, model_name, optimizer_name):
    net = MODELS[model_name]()
    data = read(f"{model_name}.data", net.kind).view(-1, *net.row)
    target = read(f"{model_name}.target", torch.int64).view(data.shape[0], -1)
    flat = read(f"{model_name}.parameters", torch.float32)
    with torch.no_grad():
        for parameter, values in zip(net.parameters(), flat.split([p.numel() for p in net.parameters()]), strict=True):
            parameter.copy_(values.view_as(parameter))
    model, optimizer = net, OPTIMIZERS[optimizer_name](net.parameters())
    backward = torch.Tensor.backward
    kind, _, precision = kind.partition("-")
    dtype = {"": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=16, enabled=precision == "fp16")
    if kind == "ddp":
        model = DistributedDataParallel(net)
    if kind == "accelerate":
        accelerator = accelerate.Accelerator(cpu=True)
        assert accelerator.num_processes == world
        model, optimizer = accelerator.prepare(net, optimizer)
        backward = accelerator.backward
    losses, scales = [], []
    for step in range(steps):
        begin = (step * world + rank) * rows
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=precision != ""):
            output = model(data[begin : begin + rows])
        loss = F.cross_entropy(output.float(), target[begin : begin + rows].flatten())
        if precision == "fp16":
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(torch.tensor(scaler.get_scale()))
        else:
            backward(loss)
            optimizer.step()
        losses.append(loss.detach())
    seen = [torch.stack(losses), *scales, *(p.detach() for p in net.parameters())]
    if rank == 0:
        seen += [b for b in net.buffers() if b.is_floating_point()]
    flat = torch.cat([one.flatten() for one in seen])
    name = f"{kind}{'-' if precision else ''}{precision}:{world}.{model_name}.{optimizer_name}.{rank}"
    (folder / name).write_bytes(bytes(flat.view(torch.uint8).tolist()))


def run(kind, rank, world):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world)}
    if kind.startswith("ddp"):
        dist.init_process_group("gloo")
    for model_name in MODELS:
        for optimizer_name in OPTIMIZERS:
            train(kind, rank, world, model_name, optimizer_name)
    if dist.is_initialized():
        dist.destroy_process_group()


# Importing torch takes seconds, so all ranks are forks of this process, which has done it.
for system in systems:
    kind, world = system.split(":")
    ranks = []
    for rank in range(int(world)):
        child = os.fork()
        if child == 0:
            run(kind, rank, int(world))
            sys.exit(0)
        ranks.append(child)
    if any([os.waitpid(child, 0)[1] for child in ranks]):
        sys.exit(f"{system} failed")
