"""
anneal: a beta that moves during training

The value at an update on a line or on half a cosine, and its edges.
"""
from assignments.exercise import Mistake

TARGETS = ["loop.py:anneal"]
POINTS, MINUTES = 3, 20

def probes(rng):
    """Both schedules up and down, an end of 0, no schedule, no end, and one step."""
    start, end = (round(float(x), 3) for x in rng.uniform(0.2, 2, 2))
    def probe(title, start, end, schedule, n):
        return dict(title=title, start=start, end=end, schedule=schedule, n=n)
    return [probe("linear, six updates", start, end + 2, "linear", 6),
            probe("cosine, five updates", start + 2, end, "cosine", 5),
            probe("cosine upward from 0", 0.0, end, "cosine", 4),
            probe("linear to an end of 0", start, 0.0, "linear", 4),
            probe("no schedule given", start, end + 1, None, 3),
            probe("constant", start, end + 1, "constant", 3),
            probe("no end", start, None, None, 3),
            probe("one update", start, end + 1, "linear", 1)]

def run(module, probe):
    """The values at step 0 (validation before training) and at each update."""
    values = [module.anneal(step, probe["start"], probe["end"], probe["schedule"], probe["n"])
              for step in range(probe["n"] + 1)]
    return dict(values=[float(value) for value in values])

KEPT, PROGRESS = 'if end is None or schedule == "constant":', "progress = max(1, step) / max_steps"
COSINE, RETURN = "progress = 0.5 - 0.5 * math.cos(math.pi * progress)", "return start + (end - start) * progress"
START = f"{KEPT}\n        return start"
EDGES, HALF, HAND = "The first and the last update", "Half a cosine", "test_loop.py::test_annealing_by_hand"
MISTAKES = {
    "backwards": Mistake(((RETURN, "return end + (start - end) * progress"),),
        "Print the value at the last update. Which of the two numbers should it be?", EDGES, HAND,
        "With --beta 1 --beta_end 0.1 the last updates of a run are the most cautious ones, not the first."),
    "the first update at start": Mistake(((PROGRESS, "progress = (max(1, step) - 1) / max(1, max_steps - 1)"),),
        "Updates are counted from 1. How far is the first one, when max_steps are to reach the end?", EDGES, HAND),
    "the end is never reached": Mistake(((PROGRESS, "progress = (max(1, step) - 1) / max_steps"),),
        "Print the value at update max_steps. Is it the end?", EDGES, HAND),
    "the end too early": Mistake(((PROGRESS, "progress = (max(1, step) + 1) / (max_steps + 1)"),),
        "At which fraction of the way is update 1 of 4?", EDGES, HAND),
    "step 0 at start": Mistake(((PROGRESS, "progress = step / max_steps"),),
        "What does the docstring say of step 0? A loss refuses beta = 0, and `start` may be 0.", EDGES, HAND),
    "an end of 0 is no end": Mistake(((KEPT, 'if not end or schedule == "constant":'),),
        "How does your code tell an end that is 0 from an end that was not given?", EDGES, HAND),
    "constant is forgotten": Mistake(((KEPT, "if end is None:"),),
        "Print all values for the schedule constant.", EDGES, HAND),
    "no schedule is constant": Mistake(((KEPT, 'if end is None or schedule in (None, "constant"):'),),
        "What should happen if an end is given and the schedule is None?", EDGES, HAND),
    "constant at the end": Mistake(((START, f"{START} if end is None else end"),),
        "Which of the two numbers stays for the schedule constant?", EDGES, HAND),
    "the cosine falls": Mistake(((COSINE, "progress = 0.5 + 0.5 * math.cos(math.pi * progress)"),),
        "What is the progress at the last update of your cosine: 1 or 0?", HALF, HAND),
    "a quarter of a cosine": Mistake(((COSINE, "progress = 1 - math.cos(math.pi / 2 * progress)"),),
        "Half of the way must be done at half of the updates. Is it in your cosine?", HALF, HAND,
        "With --beta_schedule cosine beta moves ever faster, and is not halfway at half of the updates."),
    "a sine": Mistake(((COSINE, "progress = math.sin(math.pi / 2 * progress)"),),
        "How fast should the value move in the first updates: slowly or fast?", HALF, HAND),
    "the cosine is linear": Mistake(((COSINE, "pass"),),
        "Compare your values for linear and cosine.", HALF, HAND),
}
ALTERNATIVES = {
    "the weighted mean": '''
def anneal(step, start, end, schedule, max_steps):
    if end is None or schedule == "constant":
        return start
    t = (step if step > 0 else 1) / max_steps
    if schedule == "cosine":
        t = (1 - math.cos(t * math.pi)) / 2
    return (1 - t) * start + t * end
''',
    "sine squared": '''
def anneal(step, start, end, schedule, max_steps):
    if schedule == "constant":
        end = None
    if step == 0:
        step = 1
    done = math.sin(math.pi * step / max_steps / 2) ** 2 if schedule == "cosine" else step / max_steps
    return start if end is None else start + done * (end - start)
''',
}
HIDDEN = ()
REMOVED = ()
TO_END = "from start to end, reached at max_steps. Step 0"
VARIANTS = {
    "geometric": (
        (RETURN, "return start * (end / start) ** progress if start and end else start + (end - start) * progress"),
        (TO_END, "from start to end by equal factors (equal steps if one of both is 0), reached at max_steps. Step 0")),
    "done at the middle": (
        (PROGRESS, "progress = min(1.0, 2 * max(1, step) / max_steps)"),
        (TO_END, "from start to end, reached at max_steps / 2 and kept. Step 0")),
    "from start on": (
        (PROGRESS, "progress = (max(1, step) - 1) / max(1, max_steps - 1)"),
        (TO_END, "from start (update 1) to end (update max_steps; start if that is 1). Step 0")),
}
