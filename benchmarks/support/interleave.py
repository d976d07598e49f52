"""Turns: systems that do the same work run one after the other, round after round, and the others sleep meanwhile."""
import math
import statistics

from .rows import Row, relate

PROBES = 10  # steps whose losses are compared
# Of losses of the same step in two systems. AdamW in LibTorch's C++, foreach and fused round differently: 2e-6 was
# seen. A system that does not average its gradients is further off, which is checked, too, or the check were blind.
LOSS_BOUND = 1e-4


class Different(Exception):
    """Two systems do not do the same work, so their times cannot be compared."""


class Cell:
    """One system in one variant of a case, such as ("pytorch_ddp", "fused"). `needs`: a setting without which the
    variant would be the plain case again."""

    def __init__(self, system, case, variant="", needs=None):
        self.system, self.case, self.variant, self.needs = system, case, variant, needs
        self.rounds = []
        self.losses = None  # [rank][step]

    def __str__(self):
        return self.system + (f" ({self.variant})" if self.variant else "")


def apart(a, b, steps=PROBES):
    """The largest relative difference of two systems' losses; infinite where one is no number."""
    pairs = [pair for own, others in zip(a, b) for pair in zip(own[:steps], others[:steps])]
    if not all(math.isfinite(x) and math.isfinite(y) for x, y in pairs):
        return math.inf
    return max(abs(x - y) / max(abs(y), 1e-6) for x, y in pairs)


def check_losses(cells, label, bound=LOSS_BOUND):
    """Fails unless all compute the same losses; libtorch, whose ranks train by themselves, that of the first step."""
    trained = [cell for cell in cells if "model" in cell.case]
    cells = trained or cells  # a collective alone has its own numbers
    alone = [cell for cell in cells if cell.system == "libtorch" and len(cell.losses) > 1]
    together = [cell for cell in cells if cell not in alone]
    reference = together[0]
    worst = 0.0
    for cell in together + alone:  # the reference with itself, too: it may be no number
        steps = 1 if cell in alone else PROBES
        difference = apart(cell.losses, reference.losses, steps)
        worst = max(worst, difference)
        if not difference <= bound:
            raise Different(f"{label}: the losses of {cell} differ from those of {reference} by {difference:.1e}, "
                            f"at most {bound:.0e} is allowed:\n  {cell.losses}\n  {reference.losses}")
    for cell in alone:
        if apart(cell.losses, reference.losses) <= bound:
            raise Different(f"{label}: ranks that do not communicate have the losses of those that do, so that losses "
                            f"do not tell whether gradients are averaged:\n  {cell.losses}\n  {reference.losses}")
    return worst


def open_cells(cells, groups, probes=PROBES):
    """Returns the cells that there are: one whose system does not know the setting that it needs is none."""
    known = []
    for index, cell in enumerate(cells):
        if cell.system not in groups:
            continue
        answers = groups[cell.system].ask(do="open", id=str(index), case=cell.case)
        cell.id = str(index)
        if cell.needs and answers[0].get("unknown") == cell.needs:
            close_cells([cell], groups)
            continue
        answers = groups[cell.system].ask(do="losses", id=cell.id, steps=probes)
        cell.losses = [answer["losses"] for answer in answers]
        known.append(cell)
    return known


def close_cells(cells, groups):
    for cell in cells:
        groups[cell.system].ask(do="close", id=cell.id)


def run(cell, groups, warm, steps):
    """Nanoseconds of each step, on rank 0."""
    return groups[cell.system].ask(do="run", id=cell.id, warm=warm, steps=steps)[0]["ns"]


def steps_in(turn_s, cells, groups):
    slowest = max(statistics.median(run(cell, groups, 3, 5)) for cell in cells) * 1e-9
    return int(min(max(turn_s / slowest, 10), 1000))


def take_turns(cells, groups, rounds, steps, warm, work=run):
    """Fills cell.rounds with what `work` finds. All do equally many steps, behind some that do not count."""
    for turn in range(rounds):
        for place in range(len(cells)):
            cell = cells[(turn + place) % len(cells)]  # nobody is always behind the same one
            cell.rounds.append(work(cell, groups, warm, steps))


def milliseconds(rounds):
    return [[ns * 1e-6 for ns in turn] for turn in rounds]


def rows_of(benchmark, label, cells, world_size, **more):
    """Rows of the plain case, and of a case `label, variant` for each variant: its cells, and what it is compared to.

    A variant of the peers stands beside accel, one of accel beside the peers: those rows are in both cases."""
    rows = []
    for variant in dict.fromkeys(cell.variant for cell in cells):
        chosen = [cell for cell in cells if cell.variant == variant]
        systems = {cell.system for cell in chosen}
        if variant:
            chosen += [cell for cell in cells if not cell.variant and cell.system not in systems
                       and (cell.system == "accel" or "accel" in systems)]  # fmt: skip
        case = f"{label}, {variant}" if variant else label
        rows += relate([Row(benchmark, case, cell.system, world_size, "ms", milliseconds(cell.rounds),
                            again=cell.variant != variant, **more) for cell in chosen])  # fmt: skip
    return rows
