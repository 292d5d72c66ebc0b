"""
What is wrong with a result: the mistake that gives exactly this result, or facts that are true of it.

    apart = separation(mistakes, reference, wrong, alternatives)
    judged = judge(student, reference, wrong, probes, apart.tolerance)

Results are lists with one entry for each probe, as worker.py returns them. A hint is shown only if it is proven: the
student's arrays are those of one mistake, on every probe, to a tolerance that lies far below the distance between any
two mistakes. Everything else that is said is a fact: a shape, a sign, a row that is right.
"""
import math
from dataclasses import dataclass, field

import numpy as np

FLOOR = 1e-13    # rounding of float64, relative

@dataclass
class Judged:
    """right, the name of the recognized mistake or "", and one-line facts."""
    right: bool
    mistake: str = ""
    facts: list = field(default_factory=list)

# ---------------------------------------------------------------------------------------------------------------------
# distances

def gap(a, b):
    """The largest difference of two arrays, relative to b's largest finite value. inf if they cannot be compared."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.size == 0:
        return 0.0
    a, b = a.astype("float64"), b.astype("float64")
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    scale = max(np.abs(b[finite]).max(), 1e-6)    # 1e-300 and 0 are the same loss
    return float(np.abs(a[finite] - b[finite]).max() / scale)

def entry_gap(a, b):
    """The distance of two entries: of their worst array. Two errors are equal; an error and a value are not."""
    if "error" in a or "error" in b:
        return 0.0 if "error" in a and "error" in b else math.inf
    if a["arrays"].keys() != b["arrays"].keys() or sorted(a["changed"]) != sorted(b["changed"]):
        return math.inf
    return max((gap(a["arrays"][name], b["arrays"][name]) for name in b["arrays"]), default=0.0)

def distance(a, b):
    """The distance of two results: of their worst probe, symmetric."""
    return max(max(entry_gap(x, y), entry_gap(y, x)) for x, y in zip(a, b))

@dataclass
class Separation:
    """noise: of right solutions among themselves; apart: the least distance of results with different hints."""
    noise: float
    apart: float
    closest: tuple

    @property
    def tolerance(self):
        """The geometric mean of both: as far above the noise as below half of the distance."""
        return math.sqrt(self.noise * min(self.apart, 1.0) / 2)

    @property
    def holds(self):
        return self.apart > 1000 * self.noise

def distinct(mistakes, reference, wrong, least=1e-9):
    """
    The results of mistakes that can be told from the reference and from each other: name -> result.

    A variant may specify what is otherwise a mistake, or make two mistakes equal. Those are left out.
    """
    kept = {}
    for name, result in wrong.items():
        others = [other for key, other in kept.items() if mistakes[key].hint != mistakes[name].hint]
        if all(distance(result, other) > least for other in [reference, *others]):
            kept[name] = result
    return kept

def separation(mistakes, reference, wrong, alternatives):
    """Separation of the reference, all alternatives and all mistakes. wrong and alternatives: name -> result."""
    noise = max([FLOOR, *(distance(found, reference) for found in alternatives.values())])
    results = {"the reference": reference, **wrong}
    hint = {"the reference": None, **{name: mistake.hint for name, mistake in mistakes.items()}}
    names, apart, closest = list(results), math.inf, ("", "")
    for i, first in enumerate(names):
        for second in names[:i]:
            if hint[first] != hint[second] and (found := distance(results[first], results[second])) < apart:
                apart, closest = found, (first, second)
    return Separation(noise, apart, closest)

# ---------------------------------------------------------------------------------------------------------------------
# facts

def of_arrays(name, found, want):
    """Facts about one array, or [] if it is right in everything that can be told without its values."""
    if found.shape != want.shape:
        return [f"`{name}` has the shape {tuple(found.shape)}, not {tuple(want.shape)}"]
    if found.dtype != want.dtype:
        return [f"`{name}` is {found.dtype}, not {want.dtype}"]
    finite, belongs = np.isfinite(found.astype("float64")), np.isfinite(want.astype("float64"))
    if n := int((belongs & ~finite).sum()):
        return [f"`{name}` has {n} values of {found.size} that are nan or infinite"]
    if n := int((finite & ~belongs).sum()):
        return [f"`{name}` has {n} finite values of {found.size} where an infinite one belongs"]
    return []

def relation(pairs):
    """How an array is related to the right one over all probes: "times c", "plus c" or "". pairs: (found, want)."""
    found, want = (np.concatenate([array.astype("float64").ravel() for array in side]) for side in zip(*pairs))
    if found.size < 2 or not np.isfinite([found, want]).all():
        return ""
    at = np.abs(want) > 1e-9
    if at.sum() >= 2 and np.ptp(np.abs(want[at])) >= 1e-9:    # any constant is a multiple of another one
        c = float(np.median(found[at] / want[at]))
        if abs(c - 1) > 1e-9 and np.allclose(found, c * want, rtol=1e-9, atol=1e-12):
            return f"times {c:.6g}"
    c = float(np.median(found - want))
    return f"plus {c:.6g}" if np.allclose(found - want, c, rtol=0, atol=1e-10) else ""

def listed(names):
    """The names of arrays as the subject of a sentence, with its verb."""
    return f"{', '.join(f'`{name}`' for name in names)} {'is' if len(names) == 1 else 'are'}"

def rows_right(name, found, want, notes, tolerance):
    """Which rows of an array are right, with what the probe says of them."""
    if found.ndim == 0 or len(found) < 2 or found.shape != want.shape:
        return []
    right = [i for i in range(len(want)) if gap(found[i], want[i]) <= max(tolerance, 1e-12)]
    if not right or len(right) == len(want):
        return []
    which = right if len(right) <= len(want) / 2 else [i for i in range(len(want)) if i not in right]
    word = "right" if which is right else "wrong"
    told = [f"row {i}" + (f" ({notes[i]})" if i < len(notes) else "") for i in which[:4]]
    more = f" and {len(which) - 4} more" if len(which) > 4 else ""
    verb = "is" if len(which) == 1 else "are"
    return [f"`{name}`: of {len(want)} rows only {', '.join(told)}{more} {verb} {word}"]

def invariances(student, reference, probes, tolerance):
    """Probes that differ in one thing on which the right answer does not depend."""
    facts = []
    for i, probe in enumerate(probes):
        if "same_as" in probe and entry_gap(reference[i], reference[j := probe["same_as"]]) <= tolerance:
            if not {"error"} & {*student[i], *student[j]} and entry_gap(student[i], student[j]) > tolerance:
                facts.append(f"the result changes with {probe['differs_in']}, and should not")
    return facts

def error_fact(student, titles):
    """The first error and how many probes have one, or None."""
    errors = [(title, entry["error"]) for title, entry in zip(titles, student) if "error" in entry]
    if not errors:
        return None
    title, error = errors[0]
    if len(errors) == len(student):
        return f"{error} (on every probe)"
    return f"{error} (on {len(errors)} of {len(student)} probes, first on {title!r})"

def form_facts(student, reference, titles):
    """One fact an array: missing, another shape or dtype, not finite. And inputs changed in place."""
    facts = {}
    for entry, want, title in zip(student, reference, titles):
        for name in set(entry["changed"]) - set(want["changed"]):
            facts.setdefault(("input", name), f"changes its input `{name}` in place")
        for name, right in want["arrays"].items():
            if name not in entry["arrays"]:
                facts.setdefault(name, f"`{name}` is missing from the result on {title!r}")
            elif found := of_arrays(name, entry["arrays"][name], right):
                facts.setdefault(name, f"{found[0]} on {title!r}")
    return list(facts.values())

def value_facts(student, reference, probes, titles, tolerance):
    """Facts about values: factors and offsets, rows, probes and arrays that are right."""
    facts, related, fine, names = [], {}, [], list(reference[0]["arrays"])
    for name in names:
        both = [(e["arrays"].get(name), w["arrays"].get(name)) for e, w in zip(student, reference)]
        both = [(found, want) for found, want in both if found is not None and want is not None]
        if any(of_arrays(name, found, want) for found, want in both):
            continue
        if all(gap(found, want) <= tolerance for found, want in both):
            fine.append(name)
            continue
        if known := relation(both):
            related.setdefault(known, []).append(name)
            continue
        rows = (rows_right(name, *pair, probe.get("rows", []), tolerance) for pair, probe in zip(both, probes))
        facts += next((found for found in rows if found), [])
    facts[:0] = [f"{listed(group)} the right answer {known}, everywhere" for known, group in related.items()]
    right = [title for title, e, w in zip(titles, student, reference) if entry_gap(e, w) <= tolerance]
    wrong = [title for title in titles if title not in right]
    if right and wrong:
        facts.append(f"right on {', '.join(map(repr, right[:3]))}; wrong on {', '.join(map(repr, wrong[:3]))}")
    if fine and len(fine) < len(names):
        facts.append(f"{listed(fine)} right; {listed([name for name in names if name not in fine])} not")
    return facts

def facts_of(student, reference, probes, tolerance):
    """All facts, the most telling first, five at most."""
    titles = [probe.get("title", f"probe {i + 1}") for i, probe in enumerate(probes)]
    if error := error_fact(student, titles):
        return [error]
    facts = [*form_facts(student, reference, titles)[:3], *invariances(student, reference, probes, tolerance),
             *value_facts(student, reference, probes, titles, tolerance)]
    return facts[:5] or ["the values are wrong on every probe, and none of the usual mistakes gives them"]

def judge(student, reference, wrong, probes, tolerance):
    """Judged for a student's result, given those of the reference and of each mistake (wrong: name -> result)."""
    if distance(student, reference) <= tolerance:
        return Judged(True)
    usable = any("error" not in entry for entry in student)
    name = next((name for name, result in wrong.items() if usable and distance(student, result) <= tolerance), "")
    return Judged(False, name, [] if name else facts_of(student, reference, probes, tolerance))
