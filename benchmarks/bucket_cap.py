# Which bucket cap is best at this size of the model and of the world?
#
# cap: of all buckets but one, which accel keeps at 1 MiB, the last, and DDP, where no cap is given, the first. The
# plain case is everybody's default; "measured" is accel's Caps::automatic().
from support.interleave import Cell

SYSTEMS = ("accel", "cpp_reducer", "pytorch_ddp")
CAPS_MIB = [1, 4, 25, 100]


def run(bench):
    for world_size in bench.cpu_sizes([2]):
        with bench.groups(SYSTEMS, bench.here(world_size)) as groups:
            for width, mib in [(512, 8)] if bench.quick else [(512, 8), (1024, 34)]:
                case = {"model": "mlp", "layers": 8, "width": width, "batch": 16, "optimizer": "sgd", "lr": 1e-2}
                cells = [Cell(system, {**case, "bucket_cap_mib": cap}, f"cap {cap} MiB")
                         for cap in CAPS_MIB for system in SYSTEMS]  # fmt: skip
                cells = [Cell(system, case) for system in SYSTEMS] + cells
                cells.append(Cell("accel", {**case, "measured_cap": True}, "measured"))
                bench.compare(f"L8 H{width} B16 SGD ({mib} MiB)", cells, groups)
