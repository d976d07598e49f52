"""The same as saving.cpp by what Python has: a line of JSON with nanoseconds.

saving.py torch_save|safetensors|async_dcp FOLDER MEGABYTES STEPS
"""
import json
import os
import sys
import time

import safetensors
import safetensors.torch
import torch
from torch import nn

WIDTH = 1024


class Training:
    def __init__(self, megabytes):
        layers = max(megabytes * 1_000_000 // (3 * 4 * WIDTH * (WIDTH + 1)), 1)
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
        self.adamw = torch.optim.AdamW(self.net.parameters(), 1e-4, fused=True)
        self.input = torch.randn(16, WIDTH)

    def step(self):
        self.adamw.zero_grad()
        self.net(self.input).square().mean().backward()
        self.adamw.step()

    def state(self):
        return {"model": self.net.state_dict(), "optimizer": self.adamw.state_dict()}

    def load(self, state):
        self.net.load_state_dict(state["model"])
        self.adamw.load_state_dict(state["optimizer"])

    def tensors(self):
        """All by name, for what holds tensors only."""
        tensors = {f"model.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for number, state in self.adamw.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in state.items()}
        return tensors


def timed(action):
    begin = time.perf_counter_ns()
    result = action()
    return time.perf_counter_ns() - begin, result


class TorchSave:
    def __init__(self, folder):
        self.path = os.path.join(folder, "all.pt")

    def save(self, training):
        torch.save(training.state(), self.path)

    def wait(self):
        pass

    def load(self, training):
        training.load(torch.load(self.path, weights_only=True))

    def open(self):
        return torch.load(self.path, weights_only=True, mmap=True)["model"]["0.weight"]


class Safetensors:
    def __init__(self, folder):
        self.path = os.path.join(folder, "all.safetensors")

    def save(self, training):
        safetensors.torch.save_file(training.tensors(), self.path)

    def wait(self):
        pass

    def load(self, training):
        loaded = safetensors.torch.load_file(self.path)
        with torch.no_grad():
            for name, tensor in training.tensors().items():
                tensor.copy_(loaded[name])

    def open(self):
        with safetensors.safe_open(self.path, "pt") as file:
            return file.get_tensor("model.0.weight")


class AsyncDcp:
    def __init__(self, folder):
        import torch.distributed

        self.path = os.path.join(folder, "dcp")
        store = torch.distributed.FileStore(os.path.join(folder, "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        self.future = None

    def save(self, training):
        from torch.distributed.checkpoint import async_save

        self.future = async_save(training.tensors(), checkpoint_id=self.path)

    def wait(self):
        if self.future is not None:
            self.future.result()

    def done(self):
        return self.future.done()


def main(system, folder, megabytes, steps):
    own = {"torch_save": TorchSave, "safetensors": Safetensors, "async_dcp": AsyncDcp}[system](folder)
    training = Training(megabytes)
    for _ in range(2):
        training.step()
    alone = [timed(training.step)[0] for _ in range(steps)]
    own.save(training)
    training.step()
    own.wait()
    call, _ = timed(lambda: own.save(training))
    first, _ = timed(training.step)
    during = []
    while hasattr(own, "done") and not own.done() and len(during) < steps:
        during.append(timed(training.step)[0])
    own.wait()
    whole = []
    for _ in range(3):
        os.sync()
        whole.append(timed(lambda: (own.save(training), own.wait()))[0])
    answer = {"alone_ns": alone, "during_ns": during, "call_ns": call, "first_ns": first, "whole_ns": whole}
    if hasattr(own, "load"):
        torch.set_num_threads(os.cpu_count())  # nothing else is to be done meanwhile
        again = Training(megabytes)
        if system == "safetensors":
            again.step()  # so that there is a state to load into
        answer["load_ns"], _ = timed(lambda: own.load(again))
        answer["open_ns"], _ = timed(own.open)
    return answer


torch.set_num_threads(1)  # a core is left to the writer
print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
