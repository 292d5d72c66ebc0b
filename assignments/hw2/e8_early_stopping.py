"""
EarlyStopping.update: the best validation loss, and how long ago it was

Ties, values that are nan, and a counter that starts again.
"""
from assignments.exercise import Mistake

TARGETS = ["loop.py:EarlyStopping.update"]
POINTS, MINUTES = 3, 20

def probes(rng):
    """Losses that fall and rise, ties, nan and infinity, no patience, and steps that are not 0, 1, 2."""
    down = sorted((float(x) for x in rng.uniform(1, 3, 3)), reverse=True)
    best = float(rng.uniform(0.2, 0.6))
    nan, inf = float("nan"), float("inf")
    def case(title, patience, values, every=30):
        return dict(title=title, patience=patience, values=values, steps=[every * i for i in range(len(values))],
                    rows=[f"evaluation {i + 1}" for i in range(len(values))])
    return [case("down, up, and down again", 2, [down[0], down[1], down[0], best, down[1], down[2]]),
            case("two equal losses", 2, [down[0], best, best, best, best - 0.1, best - 0.1]),
            case("a loss that is better by a millionth", 2, [best, best - 1e-6, best]),
            case("nan and infinity", 3, [nan, down[0], nan, inf, best, nan, nan, nan]),
            case("patience 0", 0, [best, down[2], down[1], down[0]], 10)]

def run(module, probe):
    """After each evaluation: what update returned, the best loss and its step (-1: none), the counter, and stop."""
    stopper, seen = module.EarlyStopping(probe["patience"]), []
    for value, step in zip(probe["values"], probe["steps"]):
        better = stopper.update(value, step)
        best_step = -1 if stopper.best_step is None else stopper.best_step
        better = -1 if better is None else int(better)
        seen.append((better, float(stopper.best), int(best_step), int(stopper.bad), bool(stopper.stop)))
    names = ("returned", "best", "best_step", "bad", "stop")
    return {name: list(column) for name, column in zip(names, zip(*seen))}

BETTER, KEEP, COUNT = "better = value < self.best", "self.best, self.best_step = value, step", \
    "self.bad = 0 if better else self.bad + 1"
BEST, BAD, RETURN = "What is best", "What is counted", "What update returns"
BY_HAND = "test_loop.py::test_early_stopping_counts_evaluations_in_a_row"
MISTAKES = {
    "the largest loss": Mistake(((BETTER, "better = value > self.best"),),
        "Is a validation loss good when it is large? What is `best` before the first evaluation?", BEST, BY_HAND,
        "Training ends with the message that the validation loss was not finite at any evaluation."),
    "a tie is better": Mistake(((BETTER, "better = value <= self.best"),),
        "Two evaluations have the same loss. Whose step is best_step?", BEST, BY_HAND,
        "With --lr 0 and --patience 2 a run does not stop before max_steps."),
    "a threshold": Mistake(((BETTER, "better = value < self.best - 1e-4"),),
        "How much better must a loss be? Look at the probe with a millionth.", BEST, ""),
    "nan is better": Mistake(((BETTER, "better = not value >= self.best"),),
        "Every comparison with nan is false. What does your function do with a loss that is nan?", BEST, ""),
    "better than the last one": Mistake((("if better:", "if True:"),),
        "Losses 3, 1, 2: which is `best` behind the third evaluation?", BEST, BY_HAND,
        "The saved weights are not those of the lowest validation loss of log.csv, if the loss has risen and then "
        "fallen a little."),
    "no step": Mistake(((KEEP, "self.best = value"),),
        "Which step does result.json name as the best?", BEST, BY_HAND),
    "the counter of all": Mistake(((COUNT, "self.bad = self.bad if better else self.bad + 1"),),
        "`stop` asks for the last `patience` evaluations in a row. What does a better one in between do?", BAD, BY_HAND,
        "With --patience 2 a run stops though its last evaluation but one was the best."),
    "never counted": Mistake(((COUNT, "self.bad = 0"),),
        "What does `stop` read, and what changes it?", BAD, BY_HAND),
    "counted from 1": Mistake(((COUNT, "self.bad = 1 if better else self.bad + 1"),),
        "How many evaluations without a better loss are there right behind a better one?", BAD, BY_HAND),
    "every evaluation is counted": Mistake(((COUNT, "self.bad = self.bad + 1"),),
        "Loss 3, 2, 1: how many of these evaluations were not better?", BAD, BY_HAND),
    "nothing returned": Mistake((("return better", "return None"),),
        "The caller asks whether to save the weights. What does your function tell it?", RETURN, BY_HAND),
    "returns whether to stop": Mistake((("return better", "return self.stop"),),
        "What does the caller do with the result: save or stop? Read the docstring.", RETURN, BY_HAND),
    "returns the best loss": Mistake((("return better", "return self.best"),),
        "Is a number that is not 0 true or false in Python? What should be returned?", RETURN, BY_HAND),
}
ALTERNATIVES = {
    "two ways out": '''
class EarlyStopping:
    def update(self, value, step):
        if self.best > value:
            self.best = value
            self.best_step = step
            self.bad = 0
            return True
        self.bad += 1
        return False
''',
    "by minimum": '''
class EarlyStopping:
    def update(self, value, step):
        before = self.best
        self.best = min(before, value)
        better = self.best != before
        self.best_step = step if better else self.best_step
        self.bad = (self.bad + 1) * (not better)
        return better
''',
}
HIDDEN = ()
VARIANTS = {
    "the last of equal losses": (
        (BETTER, "better = value <= self.best"),
        ("Returns whether it is the best so far.",
         "Returns whether it is the best so far. Of equal\n        losses the last one is the best.")),
}
