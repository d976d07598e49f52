# What does a window of several micro-batches cost, of which only the last one reduces?
from support.interleave import Cell
from support.rows import TRAINERS

CASE = {"model": "mlp", "layers": 8, "width": 512, "batch": 16, "optimizer": "sgd", "lr": 1e-2}


def run(bench):
    for world_size in bench.cpu_sizes([2]):
        with bench.groups(TRAINERS, bench.here(world_size)) as groups:
            for window in [4] if bench.quick else [1, 2, 4, 8]:
                case = {**CASE, "accumulation": window}
                cells = [Cell(system, case) for system in TRAINERS]
                bench.compare(f"L8 H512 B16 SGD, window of {window}", cells, groups)
