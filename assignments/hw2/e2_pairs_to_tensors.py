"""
pad and one_row_a_completion: from rows to tensors

The layout of a batch: chosen on top of rejected, padding at the right, and the mask of the completions.
"""
from assignments.exercise import Mistake

TARGETS = ["data.py:pad", "data.py:one_row_a_completion"]
POINTS, MINUTES = 5, 40

def probes(rng):
    """Ragged pairs, one pair, texts, and tokens that equal the padding value or EOS."""
    def tokens(n, low=1):
        return [int(t) for t in rng.integers(low, 60, n)]
    def row(prompt, *lens):
        sides = {side: tokens(n - 1) + [99] for side, n in zip(("chosen", "rejected"), lens)}
        return {"prompt": tokens(prompt), **sides}
    odd = {"prompt": [99], "chosen": [0, 5, 0, 0], "rejected": [0, 99]}
    notes = [f"{side} of pair {i}" for side in ("chosen", "rejected") for i in (1, 2, 3)]
    return [dict(title="three pairs", rows=notes, pairs=[row(3, 4, 2), row(1, 2, 5), row(4, 3, 3)],
                 sides=["chosen", "rejected"], lists=[tokens(3), tokens(1), tokens(5)], value=0),
            dict(title="one pair", pairs=[row(2, 5, 3)], sides=["chosen", "rejected"], lists=[tokens(4)], value=7),
            dict(title="texts", pairs=[row(2, 5), row(3, 1)], sides=["chosen"], lists=[tokens(9), tokens(2)], value=3),
            dict(title="tokens 0 and EOS inside of texts", pairs=[odd, row(2, 6, 7)], sides=["chosen", "rejected"],
                 lists=[[0, 0], [], [4, 0, 0]], value=0)]

def run(module, probe):
    """Both functions' tensors. A function that is not written yet leaves its tensors out."""
    import copy
    rows, lists = copy.deepcopy(probe["pairs"]), copy.deepcopy(probe["lists"])
    found = {}
    try:
        found["padded"], found["lens"] = module.pad(lists, probe["value"])
        found["padded_default"] = module.pad(lists)[0]
        batch = module.one_row_a_completion(rows, probe["sides"])
        found["idx"], found["completion_mask"] = batch["idx"], batch["completion_mask"]
    except NotImplementedError:
        if not found:
            raise
    return dict(found, inputs_unchanged=rows == probe["pairs"] and lists == probe["lists"])

FILL, PUT = "idx = torch.full((len(lists), max(map(len, lists))), value)", "idx[i, :len(numbers)] ="
JOIN = 'texts += [row["prompt"] + row[side] for row in rows]'
LOOPS = f"for side in sides:\n        {JOIN}\n" + '        starts += [len(row["prompt"]) for row in rows]'
BY_PAIR = """for row in rows:
        texts += [row["prompt"] + row[side] for side in sides]
        starts += [len(row["prompt"]) for side in sides]"""
GROWING = """for row in rows:
            text = row["prompt"]
            text += row[side]
            texts.append(text)"""
START, END = "(position >= starts[:, None])", "(position < ends[:, None])"
PADDING, ORDER, MASK = "Padding", "The order of the rows", "The mask of the completions"
COLLATE, BY_HAND = "test_data.py::test_collate_by_hand", "test_data.py::test_pad_by_hand"
SHIFT_HINT = "The mask marks tokens, not predictions. Write the first row of the batch with its mask below it."
MISTAKES = {
    "padding at the left": Mistake(((PUT, "idx[i, idx.shape[1] - len(numbers):] ="),),
        "The model has no attention mask. Which tokens does a token see, and which position does the first one have?",
        PADDING, BY_HAND),
    "always filled with 0": Mistake(((FILL, FILL.replace("value)", "0)")),),
        "Call pad with value=7 and look at what fills a short row.", PADDING, BY_HAND),
    "one column too many": Mistake(((FILL, FILL.replace("max(map(len, lists))", "max(map(len, lists)) + 1")),),
        "How many columns does the longest list need?", PADDING, BY_HAND),
    "all lengths are T": Mistake(
        (("lens = torch.tensor([len(numbers) for numbers in lists])",
          "lens = torch.tensor([max(map(len, lists))] * len(lists))"),),
        "The lengths say where each list ends. Compare yours with len() of each list.", PADDING, BY_HAND),
    "float tensors": Mistake(((FILL, FILL.replace("value)", "float(value))")),),
        "Tokens are indices. Which dtype does an embedding take?", PADDING, BY_HAND),
    "the sides of a pair interleaved": Mistake(((LOOPS, BY_PAIR),),
        "The docstring draws the order of the rows. What does chunk(2) give for two pairs in your order?", ORDER,
        COLLATE,
        "The validation loss stays near log 2, and the accuracy near a half, during the whole run. With --batch_size 1 "
        "the policy learns."),
    "rejected on top": Mistake((("for side in sides:", "for side in sides[::-1]:"),),
        "Which half of the batch is called chosen by everything that reads it?", ORDER, COLLATE),
    "the prompt is counted": Mistake(((f"mask = {START} & ", "mask = "),),
        "Whose tokens should the policy learn: those of the question too?", MASK, COLLATE,
        "The logged logps/chosen are lower than the sums over the tokens of the completions, by about the log-prob of "
        "the prompt."),
    "the padding is counted": Mistake(((f" & {END}", ""),),
        "Give a row more padding. Does the number of marked tokens change?", MASK, COLLATE),
    "EOS is not counted": Mistake(((END, "(position < ends[:, None] - 1)"),),
        "Which is the last token of a completion, and does its probability belong to that of the completion?", MASK,
        COLLATE, "The samples of the SFT policy do not end by themselves, although every row of the data ends in EOS."),
    "the first token is not counted": Mistake(((START, "(position > starts[:, None])"),),
        "In which column does the completion begin if the prompt has two tokens and columns count from 0?", MASK,
        COLLATE),
    "shifted to the left": Mistake(((START, "(position >= starts[:, None] - 1)"),
        (END, "(position < ends[:, None] - 1)")), SHIFT_HINT, MASK, COLLATE),
    "the prompt's last token is counted": Mistake(((START, "(position >= starts[:, None] - 1)"),), SHIFT_HINT, MASK,
        COLLATE),
    "padding found by its value": Mistake(((END, "(idx != 0)"),),
        "Is token 0 always padding? Try a completion that contains it.", MASK,
        "test_data.py::test_a_padding_token_in_a_text_is_no_padding"),
    "a prompt that grows": Mistake(((JOIN, GROWING),),
        "Print the rows before and after your function. What does += do to a list?", ORDER, COLLATE),
}
ALTERNATIVES = {
    "lists with padding, and a mask of lists": '''
def pad(lists, value=0):
    T = max(len(numbers) for numbers in lists)
    rows = [list(numbers) + [value] * (T - len(numbers)) for numbers in lists]
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(list(map(len, lists)), dtype=torch.int64)

def one_row_a_completion(rows, sides):
    texts = [row["prompt"] + row[side] for side in sides for row in rows]
    marks = [[0] * len(row["prompt"]) + [1] * len(row[side]) for side in sides for row in rows]
    return {"idx": pad(texts)[0], "completion_mask": pad(marks)[0].bool()}
''',
    "pad_sequence": '''
def pad(lists, value=0):
    tensors = [torch.tensor(numbers, dtype=torch.long) for numbers in lists]
    idx = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
    return idx, torch.tensor([len(x) for x in tensors])
''',
}
PICTURE = """        prompt 1 | chosen 1
        prompt 2 | chosen 2        all chosen completions on top, so that chunk(2) separates the sides
        prompt 1 | rejected 1
        prompt 2 | rejected 2
"""
OTHER_PICTURE = """        prompt 1 | rejected 1
        prompt 2 | rejected 2      the last of the sides on top: here all rejected completions
        prompt 1 | chosen 1
        prompt 2 | chosen 2
"""
HIDDEN = ("False on the prompt, True on",)
VARIANTS = {
    "a width that is a multiple of 8": (
        (FILL, FILL.replace("max(map(len, lists))", "-(-max(map(len, lists)) // 8) * 8")),
        ("T is the longest length. `value` fills the\n    rest at the right. This needs",
         "T is the longest length,\n    rounded up to a multiple of 8. `value` fills the rest at the right.\n"
         "    This needs")),
    "padding at the left": (
        (PUT, "idx[i, idx.shape[1] - len(numbers):] ="),
        ("at the right. This needs no attention mask: GPT-2 is causal, so no token of a text sees the padding behind "
         "it.",
         "at the left, so all texts end in the last column. one_row_a_completion pads its rows in this way too."),
        ("position = torch.arange(idx.shape[1])                           # (T,)",
         "position = torch.arange(idx.shape[1]) - (idx.shape[1] - ends)[:, None]    # (N, T): 0 at the first token")),
    "rejected on top of chosen": (
        ("for side in sides:", "for side in reversed(sides):"),
        (PICTURE, OTHER_PICTURE)),
}
