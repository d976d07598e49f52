# What does a step in bf16 and fp16 take, against f32 and against PyTorch's AMP?
#
# Whether 16 bits are faster at all is decided by the processor: what it has for them is printed. On one rank PyTorch's
# is the bare loop, on several DDP; both with the fused AdamW. `scaled` computes in f32 and scales the loss all the
# same: in large models that is two passes over the gradients. What it costs besides shows in a small one, step by step
# in turns with the plain loop of the same process.
import pathlib
import statistics

from step_time import mlp, training
from support.interleave import Cell, close_cells, open_cells
from support.rows import significant

CASES = [
    mlp(4, 32, 8, "adamw"),
    mlp(8, 512, 16, "adamw"),
    mlp(8, 512, 256, "adamw"),
    ("transformer B8 AdamW", training("adamw", model="transformer", batch=8)),
]
SMALL = "L4 H32 B8 AdamW"
QUICK = [SMALL, "transformer B8 AdamW"]
PRECISIONS = ["bf16", "fp16", "scaled"]
SYSTEMS = ["accel", "pytorch_ddp"]

# Of losses in bf16, of 8 bits, and in f32 after ten steps; equal ones are the matter of tests/parity.
LOSS_BOUND = 0.02


def processor():
    """What it computes products of 16 bits with, by Linux's names."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    found = [name for name in ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16") if name in flags]
    return ", ".join(found) or "nothing: they are not faster than those of 32"


def cells_of(case, world_size):
    peer = {**case, "fused": True, **({"bare": True} if world_size == 1 else {"views": True})}
    cells = [Cell("accel", case), Cell("pytorch_ddp", peer)]
    for precision in PRECISIONS:
        cells.append(Cell("accel", {**case, "precision": precision}, precision))
        cells.append(Cell("pytorch_ddp", {**peer, "precision": precision}, precision))
    return cells


def cost_of_scaling(case, groups, steps):
    """Microseconds of accel's step."""
    plain, scaled = Cell("accel", case), Cell("accel", {**case, "precision": "scaled"})
    open_cells([plain, scaled], groups)
    answer = groups["accel"].ask(do="run_both", id=plain.id, other=scaled.id, warm=10, steps=steps)[0]
    close_cells([plain, scaled], groups)
    return 1e-3 * statistics.median(with_it - without for with_it, without in zip(answer["other_ns"], answer["ns"]))


def run(bench):
    bench.say(f"    for products of 16 bits the processor has {processor()}")
    for world_size in bench.cpu_sizes([1, 2]):
        with bench.groups(SYSTEMS, bench.here(world_size)) as groups:
            for label, case in CASES:
                if bench.quick and label not in QUICK:
                    continue
                found, note = bench.compare(label, cells_of(case, world_size), groups, bound=LOSS_BOUND, show=False)
                of = {(row.case, row.system): row for row in found}
                for row in found:
                    row.more["over_f32"] = row.p50 / of[label, row.system].p50
                if label == SMALL:
                    us = cost_of_scaling(case, groups, steps=300 if bench.quick else 2000)
                    of[f"{label}, scaled", "accel"].more["scaling_us"] = us
                    note += f"    scaling the loss adds {significant(us)} us to a step of accel\n"
                bench.add(found, columns=["over_f32"], note=note)
