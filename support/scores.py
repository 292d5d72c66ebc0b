"""
The reward gap of a row of a file: the reward of the chosen answer minus that of the rejected one, for odpo.

Two pairs of columns are read: chosen_score and rejected_score, or UltraFeedback's score_chosen and score_rejected.
Sampled pairs have rewards of their own (sampling.py). See docs/data.md. Read next: sources.py
"""
import math

from support.messages import columns_of, short

COLUMNS = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
UNSCORED = ("hh", "tldr")    # data sets of the hub with labels and no rewards
REMEDY = ("there are rewards in sampled pairs (--data toy, imdb), in ultrafeedback, and in files with the columns "
          "chosen_score and rejected_score; or choose a loss that needs none, such as dpo")

def check_scored(data):
    """Raises ValueError, before anything is downloaded, for a data set that has no rewards."""
    if data in UNSCORED:
        raise ValueError(f"{data}: its pairs have no rewards, and this loss needs their difference; {REMEDY}")

def score_of(record, field, where):
    """The number in a row's field, which may be written as text, as in a .csv. Raises ValueError if there is none."""
    value = record[field]
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{where}, field {field!r}: expected a number, the reward of an answer, got {short(value)}")
    return score

def gap_of(record, where):
    """The reward of chosen minus that of rejected, in the file's units. where: file and row, for error messages."""
    fields = next((fields for fields in COLUMNS if fields[0] in record or fields[1] in record), COLUMNS[0])
    for field in fields:
        if field not in record:
            raise ValueError(f"{where}, field {field!r}: missing, and this loss needs the rewards of both answers; the "
                             f"row has {columns_of(record)}; {REMEDY}")
    chosen, rejected = (score_of(record, field, where) for field in fields)
    return chosen - rejected
