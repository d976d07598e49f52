# What does a whole step cost, against the same loop in plain LibTorch, in PyTorch's DDP and in HF Accelerate?
#
# Every rank trains on batches of its own, in zero_grad, forward, backward and step. libtorch does not communicate: what
# the ranks cost each other by sharing a machine is in its figures, and nothing else.
from support.interleave import Cell
from support.rows import TRAINERS


def mlp(layers, width, batch, optimizer):
    label = f"L{layers} H{width} B{batch} {'SGD' if optimizer == 'sgd' else 'AdamW'}"
    return label, training(optimizer, model="mlp", layers=layers, width=width, batch=batch)


def training(optimizer, **more):
    return {"optimizer": optimizer, "lr": {"sgd": 1e-2, "adamw": 1e-4}[optimizer], **more}


CASES = [
    mlp(4, 32, 8, "sgd"),
    mlp(4, 32, 8, "adamw"),
    mlp(8, 64, 16, "adamw"),
    mlp(32, 64, 16, "sgd"),
    mlp(8, 512, 16, "sgd"),
    mlp(8, 512, 16, "adamw"),
    ("transformer B8 SGD", training("sgd", model="transformer", batch=8)),
    ("transformer B8 AdamW", training("adamw", model="transformer", batch=8)),
    ("resnet B8 SGD", training("sgd", model="resnet", batch=8)),
    ("resnet B8 AdamW", training("adamw", model="resnet", batch=8)),
]
QUICK = ["L4 H32 B8 AdamW", "resnet B8 AdamW"]


def cells_of(case):
    """Everybody as they come, accel with accel::optim; as variants the peers with what their manuals recommend."""
    cells = [Cell(system, case) for system in TRAINERS]
    cells.append(Cell("accel", {**case, "torch_optim": True}, "torch::optim"))  # as libtorch has it
    cells.append(Cell("accel", {**case, "shared_memory": False}, "by network", needs="shared_memory"))
    cells.append(Cell("cpp_reducer", {**case, "views": True}, "gradient_as_bucket_view"))
    cells.append(Cell("pytorch_ddp", {**case, "views": True}, "gradient_as_bucket_view"))
    if case["optimizer"] == "adamw":
        cells.append(Cell("pytorch_ddp", {**case, "fused": True, "views": True}, "fused, gradient_as_bucket_view"))
        cells.append(Cell("hf_accelerate", {**case, "fused": True, "views": True}, "fused, gradient_as_bucket_view"))
    return cells


def run(bench):
    for device, world_size, prefix in bench.places([2] if bench.quick else [1, 2]):
        with bench.groups(TRAINERS, bench.here(world_size), device=device) as groups:
            for label, case in CASES:
                if not bench.quick or label in QUICK:
                    bench.compare(prefix + label, cells_of(case), groups)
