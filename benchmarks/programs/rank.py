"""One rank of a benchmark in Python: rank.py <system> [cpu | cuda]. It answers the commands of rank.cpp."""
import contextlib
import itertools
import json
import os
import sys
import time

import torch
from models import batches, make_net


def make_optimizer(case, net):
    if case["optimizer"] == "sgd":
        return torch.optim.SGD(net.parameters(), lr=case["lr"])
    fused = True if case.get("fused") else None  # None: PyTorch's own choice, foreach or a loop
    return torch.optim.AdamW(net.parameters(), lr=case["lr"], weight_decay=1e-2, fused=fused)


def ddp_settings(case):
    """What a case says of DDP; the rest is its default."""
    settings = {"gradient_as_bucket_view": case.get("views", False)}
    if "bucket_cap_mib" in case:
        settings["bucket_cap_mb"] = case["bucket_cap_mib"]
    return settings


def in_precision(precision, net, model, optimizer, data):
    """The loop of PyTorch's guide to AMP, with the loss in f32, as accel has it."""
    device = next(net.parameters()).device.type
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "scaled": None}[precision]
    scaler = None if precision == "bf16" else torch.amp.GradScaler(device)

    def step():
        optimizer.zero_grad()
        batch, target = next(data)
        with torch.autocast(device, dtype) if dtype else contextlib.nullcontext():
            output = model(batch)
        loss = net.loss(output.float(), target)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return step


class AllReduce:
    def __init__(self, tensor, rank):
        self.tensor, self.rank = tensor, rank

    def __call__(self):
        torch.distributed.all_reduce(self.tensor)

    def probe(self):
        """The sum of 1, 2, ... world_size everywhere; then zeros again, which stay what they are."""
        self.tensor.fill_(self.rank + 1)
        self()
        mean = self.tensor.mean()
        self.tensor.fill_(0)
        return mean


class OptimizerStep:
    """As optimizers.hpp has it."""

    def __init__(self, case):
        torch.manual_seed(1)
        self.weights = [torch.randn(shape).requires_grad_() for shape in case["shapes"]]
        for weight in self.weights:
            weight.grad = torch.randn(weight.shape)
        ways = {way: case[way] for way in ("fused", "foreach") if way in case}
        if case["optimizer"] == "SGD":
            ways["momentum"] = 0.9
        self.optimizer = getattr(torch.optim, case["optimizer"])(self.weights, **ways)

    def __call__(self):
        self.optimizer.step()

    def probe(self):
        self()
        with torch.no_grad():
            return sum(weight.double().square().mean() for weight in self.weights) / len(self.weights)


class Pytorch:
    """Without other ranks."""

    def __init__(self, device):
        pass

    def training(self, case):
        return OptimizerStep(case)


class PytorchDdp:
    def __init__(self, device):
        self.device, self.rank = device, int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")

    def training(self, case):
        net = make_net(case, self.device)
        data = batches(net, self.rank, self.device)
        model = net if case.get("bare") else torch.nn.parallel.DistributedDataParallel(net, **ddp_settings(case))
        optimizer = make_optimizer(case, net)
        micro_steps = case.get("accumulation", 1)

        def step():
            optimizer.zero_grad()
            for micro_step in range(1, micro_steps + 1):
                batch, target = next(data)
                with contextlib.nullcontext() if micro_step == micro_steps else model.no_sync():
                    loss = net.loss(model(batch), target)
                    (loss if micro_steps == 1 else loss / micro_steps).backward()
            optimizer.step()
            return loss.detach()

        return in_precision(case["precision"], net, model, optimizer, data) if "precision" in case else step

    def all_reduce(self, numbers):
        return AllReduce(torch.zeros(numbers, device=self.device), self.rank)


class HfAccelerate:
    def __init__(self, device):
        import accelerate  # takes a second

        self.accelerate, self.device, self.rank = accelerate, device, int(os.environ["RANK"])

    def training(self, case):
        # State is shared between its Accelerators, but for what is given here.
        accelerator = self.accelerate.Accelerator(
            cpu=self.device.type == "cpu",
            gradient_accumulation_steps=case.get("accumulation", 1),
            kwargs_handlers=[self.accelerate.DistributedDataParallelKwargs(**ddp_settings(case))],
        )
        net = make_net(case, self.device)
        data = batches(net, self.rank, self.device)
        model, optimizer = accelerator.prepare(net, make_optimizer(case, net))
        micro_steps = case.get("accumulation", 1)

        def step():
            optimizer.zero_grad()
            if micro_steps == 1:
                batch, target = next(data)
                loss = net.loss(model(batch), target)
                accelerator.backward(loss)
                optimizer.step()
                return loss.detach()
            for _ in range(micro_steps):
                batch, target = next(data)
                with accelerator.accumulate(model):
                    loss = net.loss(model(batch), target)
                    accelerator.backward(loss)
                    optimizer.step()
            return loss.detach()

        return step


SYSTEMS = {"pytorch": Pytorch, "pytorch_ddp": PytorchDdp, "hf_accelerate": HfAccelerate}


class Rank:
    def __init__(self, system, device):
        self.system = SYSTEMS[system](device)
        self.finish = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.steps = {}

    def answer(self, do, id, **command):
        if do == "open":
            case = command["case"]
            make = self.system.all_reduce if "bytes" in case else self.system.training
            self.steps[id] = make(case["bytes"] // 4 if "bytes" in case else case)
            return {}
        if do == "close":
            del self.steps[id]
            return {}
        step = self.steps[id]
        if do == "losses":
            probe = getattr(step, "probe", step)
            return {"losses": [probe().item() for _ in range(command["steps"])]}
        for _ in range(command["warm"]):
            step()
        self.finish()
        times = []
        for _ in itertools.repeat(None, command["steps"]):
            begin = time.perf_counter_ns()
            step()
            self.finish()
            times.append(time.perf_counter_ns() - begin)
        return {"ns": times}


def main():
    reply = os.fdopen(int(os.environ["ACCEL_BENCH_REPLY"]), "w")
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)

    def say(answer):
        print(json.dumps(answer), file=reply, flush=True)

    try:
        device = torch.device("cpu")
        if sys.argv[2:] == ["cuda"]:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        rank = Rank(sys.argv[1], device)
        say({"ready": True})
        for line in sys.stdin:
            say(rank.answer(**json.loads(line)))
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        raise
    os._exit(0)  # a group that ends rank by rank has nothing more to tell


main()
