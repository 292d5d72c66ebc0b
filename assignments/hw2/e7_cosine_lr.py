"""
cosine_lr: the learning rate of each update

Linear warmup, then half a cosine, with every edge of both.
"""
from assignments.exercise import Mistake

TARGETS = ["loop.py:cosine_lr"]
POINTS, MINUTES = 4, 25

def probes(rng):
    """A usual run and two updates after its end, no warmup, nothing but warmup, a shorter run, and one update."""
    lr, low = rng.uniform(1, 3, 5), rng.uniform(0.1, 0.5, 5)
    def run_of(i, title, warmup_steps, max_steps, n, min_lr=None):
        return dict(title=title, lr=float(lr[i]), min_lr=float(low[i]) if min_lr is None else min_lr, n=n,
                    warmup_steps=warmup_steps, max_steps=max_steps, rows=[f"update {step}" for step in range(n)])
    return [run_of(0, "4 updates of warmup, 12 in all, and two after the end", 4, 12, 15),
            run_of(1, "no warmup, min_lr 0", 0, 7, 8, 0.0),
            run_of(2, "warmup during the whole run", 5, 5, 7),
            run_of(3, "a run that ends during warmup", 10, 4, 5),
            run_of(4, "one update", 0, 1, 2)]

def run(module, probe):
    """The learning rate of updates 0 to n - 1."""
    more = [probe[name] for name in ("lr", "min_lr", "warmup_steps", "max_steps")]
    return {"lr": [float(module.cosine_lr(step, *more)) for step in range(probe["n"])]}

UP, RISE = "if step < warmup_steps:", "return lr * (step + 1) / warmup_steps"
PROGRESS = "progress = (step - warmup_steps) / max(1, max_steps - warmup_steps)"
DOWN = "return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))"
WARMUP, COSINE, EDGES = "Warmup", "Half a cosine", "The edges of the schedule"
BY_HAND, FLAGS = "test_loop.py::test_cosine_lr_by_hand", "test_flags.py::test_lr_min_lr_and_warmup_steps_by_hand"
MISTAKES = {
    "warmup that starts at 0": Mistake(((RISE, "return lr * step / warmup_steps"),),
        "Updates count from 0. Does your first update change the weights?", WARMUP, BY_HAND,
        "The weights after the first update are those before it."),
    "one update too many in warmup": Mistake(((UP, "if step <= warmup_steps:"),),
        "Which update is the last one of warmup? What is the learning rate behind it, and is it above lr?", WARMUP,
        BY_HAND, "Without warmup a run ends with a ZeroDivisionError at its first update."),
    "warmup to the cosine": Mistake(((RISE, RISE.replace("lr *", "min_lr + (lr - min_lr) *")),),
        "From which value does the warmup rise? Compute update 0 by hand.", WARMUP, BY_HAND),
    "no warmup": Mistake(((UP, "if False:"),),
        "Print the learning rate of the first five updates.", WARMUP, BY_HAND),
    "progress from update 0": Mistake(((PROGRESS, "progress = step / max(1, max_steps)"),),
        "At the first update behind warmup, how much of the cosine has passed?", COSINE, BY_HAND,
        "The learning rate drops suddenly where warmup ends."),
    "progress over all updates": Mistake(((PROGRESS, "progress = (step - warmup_steps) / max(1, max_steps)"),),
        "What is the learning rate at max_steps? Is it min_lr?", COSINE, BY_HAND),
    "ends one update early": Mistake(((PROGRESS, PROGRESS.replace("max_steps - w", "max_steps - 1 - w")),),
        "Which is the first step with the learning rate min_lr: the last update or the one after it?", COSINE, BY_HAND),
    "ends at 0": Mistake(((DOWN, DOWN.replace("min_lr + (lr - min_lr)", "lr")),),
        "What happens to min_lr in your function?", COSINE, BY_HAND,
        "--min_lr has no effect: the logged learning rate ends at 0."),
    "min_lr is added": Mistake(((DOWN, DOWN.replace("(lr - min_lr)", "lr")),),
        "What is the largest value of your learning rate with min_lr > 0? May it be above lr?", COSINE, BY_HAND),
    "a whole cosine": Mistake(((DOWN, DOWN.replace("math.pi", "2 * math.pi")),),
        "At which angle is a cosine at its lowest? Plot your learning rate.", COSINE, BY_HAND),
    "rising": Mistake(((DOWN, DOWN.replace("1 + math.cos", "1 - math.cos")),),
        "Is the learning rate behind warmup near lr or near min_lr? Plot it.", COSINE, BY_HAND,
        "The logged learning rate falls to min_lr at the end of warmup, and rises until the end of the run."),
    "a quarter of a cosine": Mistake(((DOWN,
        "return min_lr + (lr - min_lr) * math.cos(math.pi / 2 * min(1.0, progress))"),),
        "Half a cosine is flat at both of its ends. Is yours?", COSINE, BY_HAND),
    "up again behind the end": Mistake(((DOWN, DOWN.replace("min(1.0, progress)", "progress")),),
        "What is the learning rate of an update after max_steps?", EDGES, ""),
    "division by zero": Mistake(((PROGRESS, "progress = (step - warmup_steps) / (max_steps - warmup_steps)"),),
        "Which numbers of updates make your denominator 0?", EDGES, ""),
}
ALTERNATIVES = {
    "a clamped fraction": '''
def cosine_lr(step, lr, min_lr, warmup_steps, max_steps):
    if warmup_steps > step:
        return (1 + step) * (lr / warmup_steps)
    last = max_steps if max_steps > warmup_steps else warmup_steps + 1
    share = min(step - warmup_steps, last - warmup_steps) / (last - warmup_steps)
    weight = math.cos(math.pi * share / 2) ** 2
    return weight * lr + (1 - weight) * min_lr
''',
    "torch": '''
def cosine_lr(step, lr, min_lr, warmup_steps, max_steps):
    rising = torch.tensor((step + 1) / max(1, warmup_steps), dtype=torch.float64)
    left = torch.tensor((max_steps - step) / max(1, max_steps - warmup_steps), dtype=torch.float64).clamp(min=0)
    if max_steps <= warmup_steps:
        left = torch.tensor(1.0 if step == warmup_steps else 0.0, dtype=torch.float64)
    falling = min_lr + (lr - min_lr) * (1 - torch.cos(math.pi * left)) / 2
    return (lr * rising if step < warmup_steps else falling).item()
''',
}
HIDDEN = ()
VARIANTS = {
    "linear decay": (
        ("0.5 * (1 + math.cos(math.pi * min(1.0, progress)))", "(1 - min(1.0, progress))"),
        ("then half a cosine to min_lr.", "then a straight\n    line to min_lr.")),
    "warmup from 0": (
        (RISE, "return lr * step / warmup_steps"),
        ("linear warmup to lr in warmup_steps, then half a cosine to min_lr.",
         "half a cosine to min_lr, after linear\n    warmup from 0 at update 0 to lr at update warmup_steps.")),
}
