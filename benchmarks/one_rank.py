# What does a loop that runs on one rank pay for accel?
#
# Both loops live in one process and step in turns, with the same optimizer of LibTorch's: of two processes the one is as
# a rule some percent faster than the other, by where their memory lies, and that is more than what is looked for.
import step_time
from support.interleave import Cell, check_losses, close_cells, open_cells, rows_of, steps_in
from support.ranks import Skip

QUICK = ["L4 H32 B8 SGD", "transformer B8 SGD"]


def run(bench):
    if bench.world_sizes not in (None, [1]):
        raise Skip("it runs on one rank")
    for device, _, prefix in bench.places([1]):
        with bench.groups(["accel"], bench.here(1), device=device) as groups:
            for label, case in step_time.CASES:
                if bench.quick and label not in QUICK:
                    continue
                label = prefix + label
                accel = Cell("accel", {**case, "torch_optim": True})
                bare = Cell("accel", {**case, "system": "libtorch"})
                open_cells([accel, bare], groups)
                check_losses([accel, bare], label)
                steps = steps_in(bench.turn_s, [accel, bare], groups)
                for _ in range(bench.rounds):
                    answer = groups["accel"].ask(do="run_both", id=accel.id, other=bare.id, warm=10, steps=steps)[0]
                    accel.rounds.append(answer["ns"])
                    bare.rounds.append(answer["other_ns"])
                close_cells([accel, bare], groups)
                bare.system = "libtorch"
                bench.add(rows_of(bench.name, label, [accel, bare], 1, threads=1),
                          note=f"    {bench.rounds} rounds of {steps} steps of each\n")  # fmt: skip
