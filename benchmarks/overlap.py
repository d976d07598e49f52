# How much of the communication is hidden behind backward, over links of 100 Mbit/s, 1 and 3 Gbit/s?
#
# Two ranks, on two machines that are network namespaces; 8 x Linear(512, 512), 8.4 MB of gradients.
#
#   compute      a step of libtorch, which does not communicate, on both at once
#   communicate  one all-reduce of all gradients, alone
#   serial       compute + communicate
#   hidden       (serial - step) / (serial - max(compute, communicate)): the share of what could be hidden
#   ceiling      the share that backward leaves time for: backward without its first layer, whose gradient is the first
#                to be sent, over what could be hidden
#
# Each rank has its core for computing and for sending, so that "alone" is a little better than "meanwhile" can be.
import statistics

from support.interleave import Cell, close_cells, open_cells
from support.link import two_hosts
from support.rows import TRAINERS

LAYERS, WIDTH = 8, 512
BYTES = LAYERS * (WIDTH * WIDTH + WIDTH) * 4
# Of multiplications in backward: two per layer but the last, which needs no gradient of its input.
BEHIND_FIRST = (2 * LAYERS - 3) / (2 * LAYERS - 1)


def training(batch, **more):
    return {"model": "mlp", "layers": LAYERS, "width": WIDTH, "batch": batch, "optimizer": "sgd", "lr": 1e-2,
            "shared_memory": False, **more}  # fmt: skip


def median_ms(groups, system, case, steps, phase=None):
    cells = open_cells([Cell(system, case)], groups, probes=1)
    if phase:
        answer = groups[system].ask(do="phases", id=cells[0].id, warm=2, steps=steps)[0]["phases"][phase]["ns"]
    else:
        answer = groups[system].ask(do="run", id=cells[0].id, warm=2, steps=steps)[0]["ns"]
    close_cells(cells, groups)
    return statistics.median(answer) * 1e-6


def batches_for(shares, communicate, groups):
    """{what it is: batch} so that computing takes this share of communicating; a line through two measurements."""
    low, high = 16, 256
    at_low, at_high = (median_ms(groups, "libtorch", training(batch), 10) for batch in (low, high))
    slope = max((at_high - at_low) / (high - low), 1e-6)
    found = {"batch 64": 64}
    for name, share in shares.items():
        batch = round(low + (share * communicate - at_low) / slope)
        if batch >= 1:
            found[name] = batch
        else:
            print(f"    no batch is so small that {name} of communicating ({communicate:.0f} ms)")
    return found


def compare(bench, groups, mbit, name, batch):
    case = training(batch)
    few = bench.quick or mbit < 1000  # there a step takes a second
    systems = [system for system in TRAINERS if not few or system in ("accel", "libtorch", "per_tensor", "pytorch_ddp")]
    cells = [Cell(system, case) for system in systems]
    cells.append(Cell("per_tensor", {"bytes": BYTES, "optimizer": "none"}, "communicate alone"))
    if not few:
        cells.append(Cell("accel", {**case, "overlap": False}, "no overlap"))
    cells.append(Cell("accel", {**case, "step_in_backward": True}, "step_in_backward"))
    cells.append(Cell("accel", {**case, "bucket_cap_mib": 1}, "cap 1 MiB"))
    cells.append(Cell("pytorch_ddp", {**case, "bucket_cap_mib": 1}, "cap 1 MiB"))
    label = f"{mbit} Mbit/s, " + (name if name == f"batch {batch}" else f"{name} (batch {batch})")
    found, note = bench.compare(label, cells, groups, steps=3 if few else 8, probes=3, show=False)
    backward = median_ms(groups, "libtorch", case, 10, "backward")

    def p50(case, system):
        return next(row.p50 for row in found if row.case == case and row.system == system)

    compute, communicate = p50(label, "libtorch"), p50(f"{label}, communicate alone", "per_tensor")
    serial, could_hide = compute + communicate, min(compute, communicate)
    ceiling = min(backward * BEHIND_FIRST / could_hide, 1)
    for row in found:
        if row.system != "libtorch" and "alone" not in row.case:
            row.more["hidden"] = (serial - row.p50) / could_hide
            row.more["ceiling"] = ceiling
    bench.add(found, columns=("hidden", "ceiling"), note=(
        note + f"    compute {compute:.1f} + communicate {communicate:.1f} = serial {serial:.1f} ms, of which "
               f"{could_hide:.1f} could be hidden; backward {backward:.1f} ms: ceiling {ceiling:.0%}\n"))


def run(bench):
    if bench.cpu_sizes([2]) != [2]:
        bench.say("    there is a link between two ranks only: --ranks is 2")
    with two_hosts() as (hosts, set_rate):
        set_rate(1000)
        with bench.groups(TRAINERS, hosts) as groups:
            for mbit in [1000] if bench.quick else [1000, 3000, 100]:
                set_rate(mbit)
                communicate = median_ms(groups, "per_tensor", {"bytes": BYTES, "optimizer": "none"}, 5)
                shares = {"compute = communicate": 1}
                if not bench.quick:
                    shares |= {"compute = half": 0.5, "compute = a fifth": 0.2}
                for name, batch in batches_for(shares, communicate, groups).items():
                    compare(bench, groups, mbit, name, batch)
