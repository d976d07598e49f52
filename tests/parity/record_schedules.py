"""Records schedules of torch.optim.lr_scheduler, in the form of recorded/schedules.json.

usage: python record_schedules.py file

Names are those of replay_recorded.cpp. A case of reduce_on_plateau has the `metrics` that it judges, one before each
rate but the first; one_cycle has the `optimizer` whose momentum, or beta1, it moves.
"""

import json
import random
import sys

import torch
from torch.optim import lr_scheduler

random.seed(12)
cases = []


def optimizer_of(name, rate):
    parameters = [torch.zeros(1, requires_grad=True)]
    return torch.optim.AdamW(parameters, lr=rate) if name == "adamw" else torch.optim.SGD(parameters, lr=rate)


def record(name, make, options, steps, base_lr, optimizer="sgd", metrics=None, **arguments):
    stepped = optimizer_of(optimizer, base_lr)
    scheduler = make(stepped, **options, **arguments)
    group = stepped.param_groups[0]
    rates, momenta = [group["lr"]], []
    momentum = lambda: group["betas"][0] if optimizer == "adamw" else group["momentum"]
    momenta.append(momentum())
    for step in range(steps):
        stepped.step()
        scheduler.step(*([] if metrics is None else [metrics[step]]))
        rates.append(group["lr"])
        momenta.append(momentum())
    case = {"name": name, "base_lr": base_lr, "options": options, "optimizer": optimizer, "lr": rates, **arguments}
    if metrics is not None:
        case["metrics"] = metrics
    if name == "one_cycle":
        case["momentum"] = momenta
    cases.append(case)


def a_rate():
    return 10 ** random.uniform(-5, -1)


for _ in range(20):
    gamma = random.uniform(0.3, 0.999)
    record("step", lr_scheduler.StepLR, {"step_size": random.randint(1, 9), "gamma": gamma}, 60, a_rate())
    milestones = random.choices(range(1, 60), k=random.randint(0, 6))
    record("multi_step", lr_scheduler.MultiStepLR, {"milestones": milestones, "gamma": gamma}, 60, a_rate())
    record("exponential", lr_scheduler.ExponentialLR, {"gamma": gamma}, 60, a_rate())

    options = {"mode": random.choice(["min", "max"]), "factor": random.uniform(0, 0.9), "patience": random.randint(0, 4)}
    options |= {"threshold": random.choice([0, 1e-4, 0.05]), "threshold_mode": random.choice(["rel", "abs"])}
    options |= {"cooldown": random.randint(0, 3), "min_lr": random.choice([0, 1e-4]), "eps": random.choice([1e-8, 1e-3])}
    direction = -1 if options["mode"] == "min" else 1
    metrics, value = [], 1.0
    for _ in range(80):
        value += direction * random.choice([0, 0, 0.001, 0.02, 0.1]) + random.choice([0, 0, random.gauss(0, 0.1)])
        metrics.append(value)
    record("reduce_on_plateau", lr_scheduler.ReduceLROnPlateau, options, 80, a_rate(), metrics=metrics)

    for optimizer in ("sgd", "adamw"):
        total, max_lr = random.randint(8, 60), a_rate()
        options = {"pct_start": random.uniform(0.15, 0.5), "anneal_strategy": random.choice(["cos", "linear"])}
        options |= {"three_phase": random.choice([True, False])}
        options |= {"div_factor": random.uniform(2, 50), "final_div_factor": 10 ** random.uniform(0, 4)}
        options |= {"base_momentum": random.uniform(0.5, 0.85), "max_momentum": random.uniform(0.86, 0.99)}
        arguments = {"max_lr": max_lr, "total_steps": total}
        record("one_cycle", lr_scheduler.OneCycleLR, options, total, a_rate(), optimizer, **arguments)

about = "learning rate before step i (i = 0..), and the momentum of one_cycle, from torch.optim.lr_scheduler"
recording = {"kind": "schedules", "about": about, "versions": {"torch": torch.__version__}, "cases": cases}
with open(sys.argv[1], "w") as file:
    json.dump(recording, file)
