"""The same as loading.cpp by PyTorch's DataLoader, and by HF Accelerate's skip_first_batches: a line of JSON.

loading.py waiting FILE WORKERS STEPS WIDTH | resume ROWS PLACE | memory ROWS
"""
import json
import os
import resource
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self, path):
        self.records = torch.from_file(path, size=os.path.getsize(path), dtype=torch.uint8).view(-1, 3073)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, row):
        record = self.records[row]
        image = record[1:].view(3, 32, 32).to(torch.float32).div_(255)
        if torch.rand(1).item() < 0.5:
            image = image.flip(2)
        image = torch.constant_pad_nd(image, (4, 4, 4, 4))
        place = torch.randint(9, (2,))
        return image.narrow(1, place[0].item(), 32).narrow(2, place[1].item(), 32), record[0].item()


class Numbers(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return row


def waiting(path, workers, steps, width):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                        nn.Linear(width, 10))  # fmt: skip
    sgd = torch.optim.SGD(net.parameters(), 0.01)
    more = {"prefetch_factor": 4} if workers else {}
    loader = DataLoader(Images(path), batch_size=64, shuffle=True, num_workers=workers, **more)
    waits, walls = [], []
    while len(waits) < steps:
        batches = iter(loader)
        batch = next(batches)  # the first batch of an epoch has nothing to hide behind
        begin = time.perf_counter_ns()
        while batch is not None and len(waits) < steps:
            data, target = batch
            sgd.zero_grad()
            nn.functional.cross_entropy(net(data), target).backward()
            sgd.step()
            asked = time.perf_counter_ns()
            batch = next(batches, None)
            now = time.perf_counter_ns()
            waits.append(now - asked)
            walls.append(now - begin)
            begin = now
    return {"wait_ns": waits, "step_ns": walls}


def resume(rows, place):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(Numbers(rows), batch_size=64, shuffle=True))
    begin = time.perf_counter_ns()
    next(iter(accelerator.skip_first_batches(loader, int(place * rows / 64))))
    return {"ns": time.perf_counter_ns() - begin}


def memory(rows):
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def walk(count):
        for index, _ in enumerate(DataLoader(Numbers(count), batch_size=64, shuffle=True)):
            if index == 1000:
                break

    walk(1000)
    before = peak()
    walk(rows)
    return {"bytes": peak() - before}


torch.set_num_threads(1)
what, *rest = sys.argv[1:]
if what == "waiting":
    answer = waiting(rest[0], *map(int, rest[1:]))
elif what == "resume":
    answer = resume(int(rest[0]), float(rest[1]))
else:
    answer = memory(int(rest[0]))
print(json.dumps(answer))
