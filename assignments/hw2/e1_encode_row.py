"""
encode_row: from token lists to a row

Where EOS stands, which end is cut, and which examples are dropped.
"""
from assignments.exercise import Mistake

TARGETS = ["data.py:encode_row"]
POINTS, MINUTES = 5, 40

def probes(rng):
    """Pairs that fit and pairs that do not, prompts that are too long or empty, and examples to drop."""
    def tokens(n):
        return [int(t) for t in rng.permutation(90)[:n] + 1]
    def case(title, prompt, chosen, rejected, max_len, max_prompt_len=None, rejected_text="r"):
        token_lists = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        texts = {"prompt": "p", "chosen": "c", "rejected": rejected_text}
        if rejected is None:
            del token_lists["rejected"], texts["rejected"]
        return dict(title=title, tokens=token_lists, texts=texts, max_len=max_len, max_prompt_len=max_prompt_len)
    start = tokens(5)
    return [case("a pair that fits", tokens(3), tokens(4), tokens(2), 20),
            case("one completion too long by four tokens", tokens(4), tokens(10), tokens(3), 10),
            case("EOS just fits on one side", tokens(3), tokens(6), tokens(5), 9),
            case("a prompt longer than max_prompt_len", tokens(8), tokens(6), tokens(2), 8, 3),
            case("an empty prompt", [], tokens(4), tokens(5), 12),
            case("a prompt that leaves room for one token", tokens(9), tokens(4), tokens(4), 10),
            case("a prompt that leaves no room", tokens(10), tokens(4), tokens(4), 10),
            case("a completion of blanks", tokens(3), tokens(4), tokens(1), 20, rejected_text=" \n"),
            case("completions that differ in their ends only", tokens(3), start + tokens(2), start + tokens(3), 8),
            case("two equal completions", tokens(3), start, start, 20),
            case("a text without a rejected side", tokens(3), tokens(4), None, 20)]

def run(module, probe):
    """The row, the reason why the example is dropped (0: kept), and whether the inputs are as they were."""
    import copy
    import torch
    given = copy.deepcopy(probe["tokens"])
    row = module.encode_row(probe["texts"], given, 99, probe["max_len"], probe["max_prompt_len"])
    words, found = ["empty", "no room", "=="], {"reason": 0}
    if isinstance(row, str):
        found["reason"] = next((i for i, word in enumerate(words, 1) if word in row), -1)
        row = {}
    for field in ("prompt", "chosen", "rejected"):
        found[field] = torch.tensor(list(row.get(field, [])), dtype=torch.long)
    found["has_rejected"] = "rejected" in row
    return dict(found, inputs_unchanged=given == probe["tokens"])

CUT = "row[side] = (tokens[side] + [eot])[:room]"
PROMPT, START = 'prompt = prompt[-max_prompt_len:]', 'prompt = tokens["prompt"] or [eot]    #'
ROOM, EMPTY, EQUAL = "room = max_len - len(prompt)", "if any(not example[side].strip() for side in sides):", \
    'row["chosen"] == row.get("rejected"):'
EOS, SHORT, DROPPED = "EOS", "What is cut", "What is dropped"
BY_HAND = "test_data.py::test_encode_row_by_hand"
CUT_HINT = "Take a completion that does not fit. Did the text that the model reads end where it was cut?"
MISTAKES = {
    "no EOS": Mistake(((CUT, "row[side] = tokens[side][:room]"),),
        "How can a model learn where to stop? Count the tokens of your row for a completion that fits.", EOS,
        "test_data.py::test_prompt_and_completion_are_tokenized_apart",
        "Samples of the trained policy run up to max_new_tokens. Almost none of them ends by itself."),
    "EOS behind a cut completion": Mistake(((CUT, "row[side] = tokens[side][:room] + [eot]"),), CUT_HINT, EOS,
        BY_HAND),
    "EOS in place of the last token": Mistake(((CUT, "row[side] = tokens[side][:room - 1] + [eot]"),), CUT_HINT, EOS,
        BY_HAND, "With a small --max_len the policy learns to stop in the middle of a sentence."),
    "EOS appended in place": Mistake(((CUT, "tokens[side].append(eot)\n        row[side] = tokens[side][:room]"),),
        "Print `tokens` before and after your function. Who owns that list?", EOS, ""),
    "the prompt keeps its beginning": Mistake(((PROMPT, PROMPT.replace("[-max_prompt_len:]", "[:max_prompt_len]")),),
        "Where does the question stand in a long prompt? Compare the tokens that you keep with that end.", SHORT,
        "test_data.py::test_a_prompt_is_cut_at_its_beginning",
        "With --max_prompt_len the answers no longer fit the questions. Without the flag all is well."),
    "completions lose their beginning": Mistake(((CUT, CUT.replace("[:room]", "[-room:]")),),
        "Put prompt and completion of a cut row together. Do they read as one text?", SHORT, BY_HAND),
    "the prompt takes no room": Mistake(((ROOM, "room = max_len"),),
        "Add up the tokens of prompt and completion in your row. What may the sum be?", SHORT, BY_HAND,
        "Training on long texts ends with an error: a row has more tokens than the model has positions."),
    "both completions share the room": Mistake(((ROOM, "room = (max_len - len(prompt)) // len(sides)"),),
        "max_len counts the tokens of which texts? Are both completions behind the prompt in one text?", SHORT,
        BY_HAND),
    "an empty prompt stays empty": Mistake(((START, START.replace(" or [eot]", "")),),
        "What predicts the first token of a completion if no token stands before it?", DROPPED,
        "test_data.py::test_a_text_without_a_prompt_starts_behind_eos"),
    "EOS before every prompt": Mistake(
        ((START, START.replace('tokens["prompt"] or [eot]', '[eot] + tokens["prompt"]')),),
        "Which prompts need a token in front of them? Look at the probe 'a pair that fits'.", EOS, BY_HAND),
    "no room counts as room": Mistake((("if room < 1:", "if room < 0:"),),
        "How many tokens of a completion are left if the prompt has max_len tokens? Can it be trained on?", DROPPED,
        BY_HAND),
    "room for one token is too little": Mistake((("if room < 1:", "if room <= 1:"),),
        "What is the smallest number of tokens that can be trained on?", DROPPED, BY_HAND),
    "empty means no tokens": Mistake(((EMPTY, "if any(not tokens[side] for side in sides):"),),
        "Blanks have tokens too. Is there something to learn from them?", DROPPED,
        "test_data.py::test_an_empty_completion_is_a_reason_whatever_its_tokens_are"),
    "equality before the cut": Mistake(((EQUAL, 'tokens["chosen"] == tokens.get("rejected"):'),),
        "Two completions may differ only behind the cut. What is left of their difference in the row?", DROPPED,
        BY_HAND),
    "equal completions are kept": Mistake(((EQUAL, "False:"),),
        "What does a pair of two equal completions teach? What is the gradient of its loss?", DROPPED, BY_HAND),
}
ALTERNATIVES = {
    "side by side": '''
def encode_row(example, tokens, eot, max_len, max_prompt_len=None):
    row = {}
    for side in ("chosen", "rejected"):
        if side in tokens and example[side].strip() == "":
            return "empty completion"
    row["prompt"] = list(tokens["prompt"]) or [eot]
    if max_prompt_len and len(row["prompt"]) > max_prompt_len:
        row["prompt"] = row["prompt"][len(row["prompt"]) - max_prompt_len:]
    if len(row["prompt"]) >= max_len:
        return "prompt leaves no room"
    for side in ("chosen", "rejected"):
        if side in tokens:
            row[side] = list(tokens[side])
            if len(row["prompt"]) + len(row[side]) < max_len:
                row[side].append(eot)
            while len(row["prompt"]) + len(row[side]) > max_len:
                row[side].pop()
    if row["chosen"] == row.get("rejected"):
        return "chosen == rejected"
    return row
''',
}
HIDDEN = ("no BOS token", "are cut at the same length")
VARIANTS = {
    "prompts lose their end": (
        (PROMPT, PROMPT.replace("[-max_prompt_len:]", "[:max_prompt_len]")),
        ("A longer prompt loses its beginning, as questions stand at the end.", "A longer prompt loses its end.")),
    "cut completions end in EOS": (
        (CUT, "row[side] = tokens[side][:room - 1] + [eot]"),
        ("A longer completion loses its end, and has no EOS then",
         "A longer completion loses its end; its last\n                    token is EOS all the same")),
}
