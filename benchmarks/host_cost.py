# What does each phase of a step cost the host, per parameter, in time and in allocations?
#
# Models of P tensors that hold next to nothing: P/2 x Linear(8, 8), one row. What a system takes more than libtorch is
# its own cost, and per parameter that difference over P. At one rank nothing is sent; at two, waiting is in it.
# Allocations are calls of operator new in the whole process, which LibTorch's own threads make, too.
import statistics

from support.interleave import Cell, check_losses, close_cells, open_cells, take_turns
from support.rows import Row, relate

SYSTEMS = ("accel", "libtorch", "per_tensor", "cpp_reducer")
PHASES = ("zero_grad", "forward", "backward", "optimizer", "step")
MORE = [("", PHASES, {}), (", clipped", ("clip", "step"), {"max_norm": 0.1}),
        (", gradients kept", ("backward", "step"), {"keep_gradients": True, "lr": 1e-2})]  # fmt: skip


def phases(cell, groups, warm, steps):
    """{phase: {"us": [...], "allocations": [...]}} of rank 0; `step` is their sum."""
    answer = groups[cell.system].ask(do="phases", id=cell.id, warm=warm, steps=steps)[0]["phases"]
    found = {name: {"us": [ns / 1e3 for ns in answer[name]["ns"]], "allocations": answer[name]["allocations"]}
             for name in answer}  # fmt: skip
    found["step"] = {what: [sum(parts) for parts in zip(*(found[name][what] for name in answer))]
                     for what in ("us", "allocations")}  # fmt: skip
    return found


def rows_of(bench, label, tensors, phase, cells, world_size):
    rows = []
    for cell in cells:
        rounds = [turn[phase]["us"] for turn in cell.rounds]
        counts = [count for turn in cell.rounds for count in turn[phase]["allocations"]]
        case = f"{label}, {cell.variant}, {phase}" if cell.variant else f"{label}, {phase}"
        rows.append(Row(bench.name, case, cell.system, world_size, "us", rounds, threads=1,
                        allocations=statistics.median(counts)))  # fmt: skip
    bare = next(row for row in rows if row.system == "libtorch")
    for row in rows:
        row.more["ns_per_parameter"] = (row.p50 - bare.p50) * 1e3 / tensors
        row.more["more_allocations"] = row.more["allocations"] - bare.more["allocations"]
    for row in rows:
        relate([row, bare])
    return relate([row for row in rows if row.case == bare.case]) + [row for row in rows if row.case != bare.case]


def measure(bench, groups, label, tensors, case, phases_shown, world_size):
    cells = [Cell(system, case) for system in SYSTEMS]
    cells.append(Cell("accel", {**case, "torch_optim": True}, "torch::optim"))  # as libtorch has it
    cells = open_cells(cells, groups)
    check_losses(cells, label)
    steps = max(20, min(200, 20000 // tensors))
    take_turns(cells, groups, bench.rounds, steps, warm=max(5, steps // 10), work=phases)
    close_cells(cells, groups)
    found = [row for phase in phases_shown for row in rows_of(bench, label, tensors, phase, cells, world_size)]
    bench.add(found, columns=("ns_per_parameter", "allocations", "more_allocations"),
              note=f"    {bench.rounds} rounds of {steps} steps\n")  # fmt: skip


def run(bench):
    for device, world_size, prefix in bench.places([1] if bench.quick else [1, 2]):
        with bench.groups(SYSTEMS, bench.here(world_size), program="counting_rank", device=device) as groups:
            for tensors in [8, 256] if bench.quick else [8, 64, 256, 1000]:
                for optimizer, lr in [("sgd", 0.1)] if bench.quick else [("sgd", 0.1), ("adamw", 1e-3)]:
                    label = f"{prefix}P={tensors} {'SGD' if optimizer == 'sgd' else 'AdamW'}"
                    case = {"model": "residual", "layers": tensors // 2, "width": 8, "batch": 1,
                            "optimizer": optimizer, "lr": lr}  # fmt: skip
                    few = optimizer != "sgd" or (bench.quick and tensors > 8)
                    for name, phases_shown, more in MORE[:1] if few else MORE:
                        measure(bench, groups, label + name, tensors, {**case, **more}, phases_shown, world_size)
