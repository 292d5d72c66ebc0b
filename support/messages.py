"""
Rows of local files -> examples: which columns are read, and how messages, a system message and history make a prompt.

docs/data.md lists the layouts. Here a message is a pair (role, content) with the role system, user or assistant.
Read next: sources.py
"""
import json
import re
from collections import Counter
from contextlib import suppress
from itertools import chain, takewhile

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
HH_TITLES = {"system": "\n\n", "user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}    # HH-RLHF's dialogue format
ALPACA_TITLES = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:"}
# Stanford Alpaca's template, github.com/tatsu-lab/stanford_alpaca, with a place for earlier turns
ALPACA = ("Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
          "\n\n{}### Instruction:\n{}\n\n{}### Response:")
# A turn begins with line break, word and colon: the words alone occur inside answers
TURN = re.compile(r"\n\n(Human|Assistant):")
# The columns that may hold the answer of a row for SFT. The first one that a row has is used
CONVERSATIONS = ("messages", "conversations")
ANSWERS = ("chosen", "completion", "output", "response", *CONVERSATIONS, "text")
RATED = ANSWERS[1:-1]    # those that may hold the completion of a row with a label
DIFFERENT = "chosen and rejected have different prompts"

class Conflict(ValueError):
    """Two lists of messages cannot be parts of one prompt."""

def short(value):
    """A value as JSON of at most 60 characters, for error messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

def columns_of(record):
    """The names of a row's columns, for error messages."""
    return ", ".join(map(str, record)) or "nothing"

def text_of(record, field, where):
    """The text in a row's field. Raises ValueError if there is none. where: the file and the row, for the message."""
    if not isinstance(record.get(field), str):
        got = short(record[field]) if field in record else f"a row with {columns_of(record)}"
        raise ValueError(f"{where}, field {field!r}: expected text, got {got}")
    return record[field]

# ---------------------------------------------------------------------------------------------------------------------
# one cell -> text or messages

# A cell of text that holds a list of messages begins like CELL. Of those that are not valid JSON, DAMAGED finds the
# ones that were meant as messages; the others are answers that happen to be code
CELL = re.compile(r"""\s*(?:array\(\s*)?\[?\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")
DAMAGED = re.compile(r"""['"](?:role|from)['"]\s*:\s*(?:['"]|$)|^\s*\[\s*\{\s*['"]content""")

def message_of(value):
    """(role, content) of a dict with role and content, or with from and value; None if it is no message."""
    if not isinstance(value, dict) or not value.keys() & {"content", "value"}:
        return None
    role, content = value.get("role") or value.get("from"), value.get("content")
    content = value.get("value") if content is None else content
    return (role.lower(), content) if isinstance(role, str) else None

def parsed(value, field, where):
    """A cell as it is, or a list if it holds messages or JSON for messages. Raises ValueError for damaged JSON."""
    if isinstance(value, str) and CELL.match(value):
        try:
            found = json.loads(value)
            if any(map(message_of, found if isinstance(found, list) else [found])):
                value = found
        except (ValueError, RecursionError):
            if DAMAGED.search(value):
                raise ValueError(f"{where}, field {field!r}: looks like a list of messages, but is not valid JSON "
                                 "(cut short, or Python's single quotes): write the column with json.dumps, or use "
                                 f".jsonl; got {short(value)}") from None
    return [value] if message_of(value) else value

def read_messages(cells, field, where):
    """A list of dicts -> messages. Empty system messages are left out. Raises ValueError for what is no message."""
    found = []
    for cell in cells:
        role, content = message_of(cell) or ("", None)
        if role and role not in ROLES:
            raise ValueError(f"{where}, field {field!r}: a message has the role {role!r}, and only {', '.join(ROLES)} "
                             "are read: leave such rows out")
        if not role or not isinstance(content, str):
            raise ValueError(f"{where}, field {field!r}: expected messages of role (user, assistant, system) and "
                             f"content, got {short(cell)}")
        if role != "system" or content.strip():
            found.append((ROLES[role], content))
    return found

def messages_of_text(text):
    """A prompt of text as messages: its turns if it is in the dialogue format, else one turn of the user."""
    start, *turns = TURN.split(text)
    if not turns or (start and turns[-2:] != ["Assistant", ""]):
        return [("user", text)]
    system = [("system", start)] if start.strip() else []
    return system + [(ROLES[name.lower()], content.strip()) for name, content in zip(turns[::2], turns[1::2])]

def history_of(record, where):
    """The column history as messages; None if it is missing or empty. It holds [user, assistant] pairs or messages."""
    value = record.get("history")
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):    # text that is not JSON is refused below
            value = json.loads(value) if value.strip() else None
    if value is None:
        return None
    found = []
    for turn in value if isinstance(value, list) else [value]:
        if isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
            found += [(role, text) for role, text in zip(("user", "assistant"), turn) if text.strip()]
        elif message_of(turn):
            found += read_messages([turn], "history", where)
        else:
            raise ValueError(f"{where}, field 'history': expected a list of [user, assistant] pairs or of messages, or "
                             f"JSON for it, got {short(turn)}")
    return found

def system_of(record, where):
    """The column system, as a list of one message or of none."""
    if record.get("system") in (None, ""):
        return []
    return [("system", text_of(record, "system", where))]

# ---------------------------------------------------------------------------------------------------------------------
# parts of a conversation -> one prompt

def same(first, second):
    """Whether two lists hold the same messages. White space does not count."""
    return [(role, text.split()) for role, text in first] == [(role, text.split()) for role, text in second]

def split_system(messages):
    """(the system messages at the beginning, the turns behind them)."""
    system = list(takewhile(lambda message: message[0] == "system", messages))
    return system, messages[len(system):]

def overlap(turns, more):
    """How many turns at the end of `turns` are repeated at the beginning of `more`."""
    sizes = range(min(len(turns), len(more)), 0, -1)    # the largest first
    return next((k for k in sizes if same(turns[-k:], more[:k])), 0)

def joined(first, second, where, names):
    """
    Two lists of messages as one: the first, then what the second adds to it. The second may repeat the first or its
    end, leave out its system message, or have more before it. names: their columns. Raises Conflict if they do not fit.
    """
    (system, turns), (other, more) = split_system(first), split_system(second)
    fits = not (system and other) or same(system, other)
    windows = [more[i:i + len(turns)] for i in range(len(more) - len(turns) + 1)]
    if fits and any(same(window, turns) for window in windows):
        return (other or system) + more    # the second holds all of the first
    repeated = overlap(turns, more)
    if fits and more and not repeated:
        # Nothing is repeated, so the roles must alternate. A question may come again after a history. But a column that
        # begins with an earlier turn of the prompt is ambiguous: it repeats this turn, or it comes after all of them
        ambiguous = names[0] != "history" and any(same([turn], more[:1]) for turn in turns)
        fits = turns[-1][0] != more[0][0] and not ambiguous
    if not fits:
        a, b = (short([text for _, text in part]) for part in (first, second))
        raise Conflict(f"{where}: {names[0]} ({a}) and {names[1]} ({b}) contradict each other: the messages of the "
                       "second must continue those of the first, or repeat all of them or their end")
    return (other or system) + turns[:len(turns) - repeated] + more

def conversation(given, before, names, record, where):
    """All messages before an answer: system, history, the prompt's (given), those in its own column (before)."""
    found = joined(given, before, where, names)
    history = history_of(record, where) or []
    if not found and (not history or history[-1][0] != "user"):
        raise ValueError(f"{where}, field 'prompt': missing or empty, and no message stands before the answer")
    name = names[0] if given else names[1]
    found = joined(history, found, where, ("history", name))
    return joined(system_of(record, where), found, where, ("system", name))

def render(messages):
    """Messages in the dialogue format."""
    text = "".join(HH_TITLES[role] + content for role, content in messages)
    return text.removeprefix("\n\n") if messages and messages[0][0] == "system" else text

def prompt_of(record, where):
    """The column prompt: text, a list of messages, or None. An empty cell beside an instruction counts as None."""
    prompt = parsed(record.get("prompt"), "prompt", where)
    return None if prompt == "" and record.get("instruction") else prompt

def instruction_of(record, where):
    """(the instruction, its input or "")."""
    return text_of(record, "instruction", where), text_of(record, "input", where) if record.get("input") else ""

def without_empty_end(messages):
    """Messages without an empty turn of the assistant at their end. Chat templates add it to ask for the answer."""
    empty = messages and messages[-1][0] == "assistant" and not messages[-1][1].strip()
    return messages[:-1] if empty else messages

def dialogue(record, before, side, where):
    """A prompt as messages. before: those before the answer in its own column, `side`."""
    prompt, name = prompt_of(record, where), "prompt"
    if isinstance(prompt, list):
        given = read_messages(prompt, "prompt", where)
    elif prompt is None and "instruction" in record:
        given, name = [("user", "\n\n".join(filter(None, instruction_of(record, where))))], "instruction"
    else:
        given = messages_of_text(text_of(record, "prompt", where)) if prompt not in (None, "") else []
    return conversation(without_empty_end(given), without_empty_end(before), (name, side), record, where)

def alpaca(record, where):
    """A prompt in Alpaca's template. The system message stands before it, and earlier turns inside it."""
    asked, given = instruction_of(record, where)
    *turns, _ = conversation([("user", asked)], [], ("instruction", "answer"), record, where)
    parts = []
    for messages in split_system(turns):
        parts.append("".join(f"{ALPACA_TITLES[role]}{content}\n\n" for role, content in messages))
    more = ", paired with an input that provides further context" if given else ""
    return parts[0] + ALPACA.format(more, parts[1], asked, f"### Input:\n{given}\n\n" if given else "")

# ---------------------------------------------------------------------------------------------------------------------
# rows -> examples

def answer_fields(record, pairs, where):
    """The columns of a row's answers: ("chosen", "rejected") for pairs, else one column."""
    if pairs and not record.keys() & {"chosen", "rejected"}:
        raise ValueError(f"{where}, field 'chosen': missing, as is 'rejected', and pairs need both (texts alone are "
                         "for train_sft.py, data.py --texts; one completion with a label, true or false, is for "
                         f"train_pref.py --loss kto or bco); the row has {columns_of(record)}")
    if pairs:
        return ("chosen", "rejected")
    there = [field for field in ANSWERS if field in record]
    if not there:
        raise ValueError(f"{where}: no answer to train on: expected one of the fields {', '.join(ANSWERS)}; the row "
                         f"has {columns_of(record)}")
    filled = [field for field in there if record[field] is not None]
    return ((filled or there)[0],)

def split_answer(record, field, where):
    """
    (the messages before the answer, the answer, the number of messages behind it) of a list of messages. In a
    conversation the answer is the assistant's last message. A string is an answer without messages: (None, string, 0).
    """
    value = parsed(record.get(field), field, where)
    if not isinstance(value, list):
        return None, text_of(record, field, where), 0
    found = read_messages(value, field, where)
    n = len(found)
    while field in CONVERSATIONS and n and found[n - 1][0] != "assistant":
        n -= 1
    if not n or found[n - 1][0] != "assistant":
        raise ValueError(f"{where}, field {field!r}: expected messages that end with the assistant's, got "
                         f"{short(value)}")
    return found[:n - 1], found[n - 1][1], len(found) - n

def example(prompt, answers):
    return {"prompt": prompt, **dict(zip(("chosen", "rejected"), answers))}

def dialogue_example(record, befores, answers, fields, where):
    """The example of a row that holds messages, or DIFFERENT."""
    try:
        prompts = [dialogue(record, before or [], field, where) for before, field in zip(befores, fields)]
    except Conflict:
        if any(before != befores[0] for before in befores):
            return DIFFERENT
        raise
    turns = prompts[0]
    if any(prompt != turns for prompt in prompts):
        return DIFFERENT
    role, begun = turns[-1]
    if role != "assistant" or not begun:
        return example(render(turns) + "\n\nAssistant:", [" " + answer for answer in answers])
    # The prompt ends with the beginning of an answer. The answers continue it, or repeat it and continue it
    if all(answer.startswith(begun) for answer in answers):
        answers = [answer[len(begun):] for answer in answers]
    return example(render(turns), answers)

def example_of(record, where, pairs):
    """A row of a local file -> an example with prompt, chosen and, for pairs, rejected; or why the row is dropped."""
    fields = answer_fields(record, pairs, where)
    befores, answers, _ = zip(*(split_answer(record, field, where) for field in fields))
    prompt, history = prompt_of(record, where), history_of(record, where)
    asked = prompt is not None or "instruction" in record
    listed = isinstance(prompt, list) or any(before is not None for before in befores)
    if listed or (history is not None and prompt is not None) or (history and not asked):
        return dialogue_example(record, befores, answers, fields, where)
    if prompt is None and asked:
        return example(alpaca(record, where), answers)
    if not asked and fields != ("text",):
        raise ValueError(f"{where}, field 'prompt': missing, as is 'instruction'; the row has {columns_of(record)}")
    text, system = text_of(record, "prompt", where) if asked else "", render(system_of(record, where))
    gap = "" if not system or text.startswith("\n") else "\n\n"
    return example(system + gap + text, answers)

def is_labeled(record):
    """Whether a row has one completion and a label, thumbs up or down. A text with a label is a review instead."""
    return "label" in record and not record.keys() & {"chosen", "rejected"} and bool(record.keys() & set(RATED))

def labeled_example(record, where):
    """A row with one completion and a label -> an example with prompt, chosen and desirable, or why it is dropped."""
    if not is_labeled(record):
        field = "completion" if "label" in record else "label"
        raise ValueError(f"{where}, field {field!r}: missing; expected one completion and a label, as in other rows, "
                         f"and the row has {columns_of(record)}")
    found, label = example_of(record, where, pairs=False), label_of(record, RATED)
    if not isinstance(label, bool):
        raise ValueError(f"{where}, field 'label': expected true for thumbs up or false for thumbs down (or 1 and 0), "
                         f"got {short(record['label'])}")
    return found if isinstance(found, str) else found | {"desirable": label}

def pairs_or_labels():
    """
    A function like example_of, for the rows of one file. With pairs=True the first row decides what all of them are:
    pairs, or completions with a label. It raises ValueError for a row of the other kind.
    """
    kinds = []    # whether the first row has a label
    def example(record, where, pairs):
        if not pairs:
            return example_of(record, where, pairs)
        if not kinds:
            kinds.append(is_labeled(record))
        pair = record.keys() & {"chosen", "rejected"}
        if pair if kinds[0] else is_labeled(record):
            field, above = ("chosen", "one completion and a label") if pair else ("label", "chosen and rejected")
            raise ValueError(f"{where}, field {field!r}: not expected, because the rows above have {above}; write "
                             "pairs and completions with a label to two files")
        return labeled_example(record, where) if kinds[0] else example_of(record, where, pairs)
    return example

# ---------------------------------------------------------------------------------------------------------------------
# remarks on a file

# The last words of the names of columns that hold no text to learn from
ABOUT = set("id ids idx index uuid hash source dataset subset split score scores rating ratings category lang language "
            "license licence url date time timestamp at model models version label labels type tag tags domain".split())
ENDS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>")
# KTO's labels: whether an answer is wanted. Text is compared in lower case, numbers by their value
WANTED = {"true": True, "false": False, 1.0: True, 0.0: False}

def is_text(value):
    """Whether a value is text, or a list with text in it. A number written as text is not."""
    if isinstance(value, str):
        return bool(value.strip()) and not re.fullmatch(r"\s*[-+]?[\d.,:eE+-]*%?\s*", value)
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(map(is_text, value))

def unused_columns(record, fields, where):
    """The names of a row's columns with text that is neither in its prompt nor in its answers (fields)."""
    used = {*fields, "system", "history"}
    if "chosen" in used:
        used.add("rejected")    # SFT on pairs uses the chosen answer
    if prompt_of(record, where) is not None:
        used.add("prompt")
    elif "instruction" in record:
        used |= {"instruction", "input"}
    known = [record.get(field) for field in used]
    others = {name: value for name, value in record.items() if name not in used and not isinstance(value, dict)}
    return [name for name, value in others.items()
            if re.split(r"[\W_]+", name.lower())[-1] not in ABOUT and is_text(value) and value not in known]

def label_of(record, fields):
    """Whether a row's answer is wanted: True, False, or None without such a label. Other numbers are classes."""
    label = str(record.get("label")).strip().lower()
    if "rejected" in record or fields == ("chosen", "rejected"):
        return None
    if re.fullmatch(r"-?\d+(\.\d+)?", label) and fields != ("text",):    # a review labelled 0 is a text to learn too
        return WANTED.get(float(label), float(label))
    return WANTED.get(label)

class Remarks:
    """What is printed about a data set when all of it is read, and which of its rows are labelled false."""
    def __init__(self, pairs):
        self.pairs, self.columns, self.ends, self.longer, self.labels = pairs, {}, Counter(), 0, {}

    def note(self, split, example, record=None, where=None):
        """Takes notes of an example. record and where: the row of a local file that it was made from."""
        for side in ("chosen", "rejected"):
            self.ends.update(end for end in ENDS if example.get(side, "").rstrip().endswith(end))
        if record is not None:
            fields = answer_fields(record, self.pairs and "rejected" in example, where)
            self.columns |= dict.fromkeys(unused_columns(record, fields, where))
            self.longer += split_answer(record, fields[0], where)[2] > 0
            if "desirable" not in example:
                self.labels.setdefault(split, []).append(label_of(record, fields))

    def drop_unwanted(self, splits):
        """Removes the examples labelled false, unless the labels are numbers of several classes. Returns how many."""
        if any(isinstance(label, float) for label in chain(*self.labels.values())):
            return 0
        for split, labels in self.labels.items():
            splits[split] = [example for example, label in zip(splits[split], labels) if label is not False]
        return sum(labels.count(False) for labels in self.labels.values())

    def lines(self):
        """Yields the lines to print."""
        if self.columns:
            yield f"columns with text that are not used: {', '.join(self.columns)}"
        if self.longer:
            yield f"{self.longer:,} conversations go on after their last answer; their later messages are not used"
        for end, n in self.ends.items():
            yield (f"{n:,} answers end in a written {end}, which is trained on as text: remove it from the file; "
                   "the end of each answer is marked anyway")
