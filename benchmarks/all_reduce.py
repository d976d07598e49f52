# How fast is an all-reduce, from 1 KiB to 256 MiB, against LibTorch's Gloo from C++ and from Python?
#
# algbw is bytes over time; busbw is algbw x 2(n - 1)/n, what each rank must send and receive, so that it can be held
# against the speed of a link: as nccl-tests defines them. Of accel the backend alone, over a buffer that it allocates.
# The rank that took longest counts.
from support.interleave import Cell, check_losses, close_cells, open_cells, rows_of, steps_in, take_turns

SYSTEMS = ("accel", "per_tensor", "pytorch_ddp")  # per_tensor: c10d from C++
KIB = [1, 4, 16, 64, 256, 1024, 4096, 16384, 25600, 65536, 102400, 262144]
QUICK_KIB = [1, 64, 1024, 25600]


def run_on_all(cell, groups, warm, steps):
    """Nanoseconds of each all-reduce on the slowest rank: the one that comes last finds the others there."""
    answers = groups[cell.system].ask(do="run", id=cell.id, warm=warm, steps=steps)
    return [max(times) for times in zip(*(answer["ns"] for answer in answers))]


def size(kib):
    return f"{kib} KiB" if kib < 1024 else f"{kib // 1024} MiB"


def cells_of(kib):
    case = {"bytes": kib * 1024}
    cells = [Cell(system, case) for system in SYSTEMS]
    cells.append(Cell("accel", {**case, "shared_memory": False}, "by network", needs="shared_memory"))
    return cells


def run(bench):
    for device, world_size, prefix in bench.places([2]):
        with bench.groups(SYSTEMS, bench.here(world_size), device=device) as groups:
            found = []
            for kib in QUICK_KIB if bench.quick else KIB:
                label = prefix + size(kib)
                cells = open_cells(cells_of(kib), groups, probes=3)
                check_losses(cells, label)  # the sums, here
                steps = steps_in(bench.turn_s, cells, groups)
                take_turns(cells, groups, bench.rounds, steps, warm=max(1, steps // 10), work=run_on_all)
                close_cells(cells, groups)
                of_size = rows_of(bench.name, label, cells, world_size, threads=1)
                found += of_size
                for row in of_size:
                    row.more["algbw_gb_s"] = kib * 1024 / (row.p50 * 1e6)
                    row.more["busbw_gb_s"] = row.more["algbw_gb_s"] * 2 * (world_size - 1) / world_size
            bench.add(found, columns=("algbw_gb_s", "busbw_gb_s"), note=f"    {bench.rounds} rounds; GB/s of p50\n")
