# What do the heartbeat, Checked and Traced cost per step?
from support.interleave import Cell

CASE = {"model": "mlp", "layers": 8, "width": 512, "batch": 16, "optimizer": "sgd", "lr": 1e-2, "bucket_cap_mib": 4}
NETWORK = {"shared_memory": False}
WATCHED = {
    "no heartbeat": {"heartbeat_s": 0},
    "heartbeat 0.05 s": {"heartbeat_s": 0.05},
    "traced": {"adaptor": "traced"},
    "checked": {"adaptor": "checked"},
    "by network": NETWORK,
    "by network, checked": {"adaptor": "checked", **NETWORK},
}
ROUNDS = 25  # of the medians of few a percent is not to be seen


def run(bench):
    label = "L8 H512 B16 SGD"
    cells = [Cell("accel", CASE)]  # with the heartbeat that is the default, 1.5 s
    cells += [Cell("accel", {**CASE, **settings}, variant) for variant, settings in WATCHED.items()]
    for world_size in bench.cpu_sizes([2]):
        with bench.groups(["accel"], bench.here(world_size)) as groups:
            bench.compare(label, cells, groups, over=label, rounds=None if bench.quick else ROUNDS)
