"""PyTorch's samplers, and HF Accelerate's loaders on two ranks, with and without torchdata: what every rank is given.

usage: python loaders.py folder port [rank]

Writes samplers.json, a list of drawn orders, and loaders.0.json and loaders.1.json, what either rank saw of each case
of cases.json: the batches of two epochs, what gather_for_metrics made of the first, and the batches that are left of it
behind the first two, by skip_first_batches and by torchdata's state. It leaves with 3 where one of them is missing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

folder, port = Path(sys.argv[1]), sys.argv[2]

if len(sys.argv) == 3:
    ranks = [subprocess.Popen([sys.executable, *sys.argv, str(rank)]) for rank in range(2)]
    sys.exit(max(rank.wait() for rank in ranks))

try:
    import accelerate
    import torchdata  # noqa: F401, accelerate asks for it
except ImportError as error:
    print(error)
    sys.exit(3)

import torch
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

rank = int(sys.argv[3])
torch.set_num_threads(1)


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return torch.tensor(row)


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(torch.arange(self.rows))


def samplers():
    weights = [float(1 + row % 5) for row in range(30)]
    rows = list(range(30))
    drawn = []
    for seed in (0, 7, 123456789):
        seeded = lambda: torch.Generator().manual_seed(seed)
        orders = {
            "random": RandomSampler(rows, generator=seeded()),
            "random 70": RandomSampler(rows, num_samples=70, generator=seeded()),
            "random 7": RandomSampler(rows, num_samples=7, generator=seeded()),
            "replacement 70": RandomSampler(rows, replacement=True, num_samples=70, generator=seeded()),
            "weighted": WeightedRandomSampler(weights, 50, generator=seeded()),
            "weighted once": WeightedRandomSampler(weights, 20, replacement=False, generator=seeded()),
            "subset": SubsetRandomSampler([row * 2 for row in range(12)], generator=seeded()),
        }
        drawn += [{"name": name, "seed": seed, "order": [int(row) for row in order]} for name, order in orders.items()]
    return drawn


def walk(case):
    def prepared(stateful=False):
        accelerate.state.AcceleratorState._reset_state()
        accelerate.state.GradientState._reset_state()
        config = DataLoaderConfiguration(
            split_batches=case["split_batches"],
            even_batches=case["even_batches"],
            dispatch_batches=case["dispatched"],
            use_seedable_sampler=True,
            data_seed=42,
            use_stateful_dataloader=stateful,
        )
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
        data = Stream(case["rows"]) if case["iterable"] else Rows(case["rows"])
        shuffle = {} if case["iterable"] else {"shuffle": case["shuffle"]}
        set_seed(42)
        loader = DataLoader(data, batch_size=case["batch_size"], drop_last=case["drop_last"], **shuffle)
        return accelerator, accelerator.prepare(loader)

    accelerator, loader = prepared()
    seen = {"length": len(loader) if not case["iterable"] else -1, "epochs": [], "gathered": []}
    for epoch in range(2):
        batches = []
        for batch in loader:
            batches.append(batch.tolist())
            if epoch == 0 and not (case["iterable"] and not case["dispatched"]) and case["even_batches"]:
                seen["gathered"] += accelerator.gather_for_metrics(batch).tolist()
        seen["epochs"].append(batches)
    if len(seen["epochs"][0]) > 2 and not case["dispatched"]:
        accelerator, loader = prepared()
        seen["skipped"] = [batch.tolist() for batch in accelerator.skip_first_batches(loader, 2)]
        _, loader = prepared(stateful=True)
        for number, _ in enumerate(loader):
            if number == 1:
                state = loader.state_dict()
                break
        _, loader = prepared(stateful=True)
        loader.load_state_dict(state)
        seen["resumed"] = [batch.tolist() for batch in loader]
    return seen


os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
cases = json.loads((folder / "cases.json").read_text())
(folder / f"loaders.{rank}.json").write_text(json.dumps([walk(case) for case in cases]))
if rank == 0:
    (folder / "samplers.json").write_text(json.dumps(samplers()))
