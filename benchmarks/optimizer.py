# What does an optimizer's step cost, against torch::optim in C++ and torch.optim in Python, and against memory?
#
# Weights and gradients lie there, and only step() is timed: accel's with gradients side by side, as a reducer leaves
# them, and each by itself. PyTorch's are fused=True, and foreach=True in a variant; of Muon it has one way. The limit
# is a pass that reads and writes as many bytes as the step has to.
from support.interleave import Cell, check_losses, close_cells, open_cells, rows_of, steps_in, take_turns

SYSTEMS = ("accel", "libtorch", "pytorch")
# Of a transformer's kind: matrices, and between them norms and biases; one in eight is of an odd size.
MIXED = [[128, 128], [128], [512, 32], [512], [64, 64], [64], [64], [1003]]
MATRICES = [[128, 128], [512, 32], [64, 64], [32, 512]]
# 4-byte numbers that a step reads and writes of each weight, its gradient and its states.
MOVED = {"AdamW": 7, "SGD": 5, "Adagrad": 5, "Lion": 5, "LAMB": 9, "Adafactor": 3, "Muon": 5}
IN_CPP = ("AdamW", "SGD", "Adagrad")
IN_PYTHON = {"AdamW": ["fused", "foreach"], "SGD": ["fused", "foreach"], "Adagrad": ["fused", "foreach"],
             "Adafactor": ["foreach"], "Muon": [""]}  # fmt: skip


def cases(quick):
    """(label, shapes, optimizer)"""
    for tensors in [8, 256] if quick else [8, 64, 256, 1000]:
        for optimizer in ["AdamW"] if quick else ["AdamW", "SGD"]:
            yield f"P={tensors} mixed {optimizer}", (MIXED * tensors)[:tensors], optimizer
    if quick:
        return
    yield "P=1000 of 64 AdamW", [[64]] * 1000, "AdamW"
    for optimizer in ("AdamW", "SGD", "Lion"):
        yield f"P=8 of 2^21 {optimizer}", [[2048, 1024]] * 8, optimizer
    for optimizer in ("Adagrad", "Lion", "LAMB", "Adafactor"):
        yield f"P=64 mixed {optimizer}", (MIXED * 8)[:64], optimizer
    yield "P=16 matrices Muon", MATRICES * 4, "Muon"


def cells_of(shapes, optimizer):
    case = {"shapes": shapes, "optimizer": optimizer}
    cells = [Cell("accel", {**case, "flat": True}), Cell("accel", case, "gradients apart")]
    if optimizer in IN_CPP:
        cells.append(Cell("libtorch", case))
    for number, way in enumerate(IN_PYTHON.get(optimizer, [])):
        cells.append(Cell("pytorch", {**case, way: True} if way else case, way if number > 0 else ""))
    return cells


def numel(shapes):
    total = 0
    for shape in shapes:
        product = 1
        for size in shape:
            product *= size
        total += product
    return total


def run(bench):
    sizes = bench.cpu_sizes([1])
    with bench.groups(SYSTEMS, bench.here(sizes[0])) as groups:
        for label, shapes, optimizer in cases(bench.quick):
            moved = 4 * MOVED[optimizer] * numel(shapes)
            limit = Cell("libtorch", {"moved_bytes": moved}, "its bytes moved")
            cells = open_cells(cells_of(shapes, optimizer) + [limit], groups)
            difference = check_losses(cells[:-1], label)
            steps = steps_in(bench.turn_s, cells, groups)
            take_turns(cells, groups, bench.rounds, steps, warm=max(1, steps // 10))
            close_cells(cells, groups)
            rows = rows_of(bench.name, label, cells, 1, threads=1)
            for row in rows:
                row.more["gb_s"] = moved / (row.p50 * 1e6)
            bench.add(rows, columns=("gb_s",),
                      note=f"    {bench.rounds} rounds of {steps} steps; weights within {difference:.0e}\n")  # fmt: skip
