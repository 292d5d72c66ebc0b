"""
Rows of local files -> examples: which columns are read, and how messages, a system message and history make one prompt.

docs/data.md lists the layouts. The dialogue format is that of HH-RLHF: the system message as it is, then
"\\n\\nHuman: ...\\n\\nAssistant: ...". Read next: sources.py
"""
import json
import re
from collections import Counter

ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant", "system": "System"}
# Stanford Alpaca's template, github.com/tatsu-lab/stanford_alpaca, with a place for earlier turns
ALPACA = ("Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
          "\n\n{}### Instruction:\n{}\n\n{}### Response:")
# only with the line break and the colon: the bare words occur inside answers
TURN = re.compile(r"\n\n(Human|Assistant):")
# what a supervised row may call its answer; of several in a row the first is taken
CONVERSATIONS = ("messages", "conversations")
ANSWERS = ("chosen", "completion", "output", "response", *CONVERSATIONS, "text")
DIFFERENT = "chosen and rejected have different prompts"

class Conflict(ValueError):
    """Two lists of messages that cannot be parts of one prompt."""

def short(value):
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."

def text_of(record, field, where):
    if not isinstance(record.get(field), str):
        got = short(record[field]) if field in record else f"a row with {', '.join(map(str, record)) or 'nothing'}"
        raise ValueError(f"{where}, field {field!r}: expected text, got {got}")
    return record[field]

# ---------------------------------------------------------------------------------------------------------------------
# one cell -> text, or messages: dicts of role (user, assistant, system) and content

# how a list of messages begins when it is written as text, and what tells damaged JSON from an answer that is code
CELL = re.compile(r"""\s*(?:array\(\s*)?\[?\s*\{\s*['"](?:role|from|content|value)['"]\s*:""")
DAMAGED = re.compile(r"""['"](?:role|from)['"]\s*:\s*(?:['"]|$)|^\s*\[\s*\{\s*['"]content""")

def role_of(message):
    return message.get("role") or message.get("from")

def is_message(value):
    return isinstance(value, dict) and isinstance(role_of(value), str) and ("content" in value or "value" in value)

def parsed(value, field, where):
    """A cell as it is, or, where it is JSON for messages, the list of them. Raises ValueError if damaged."""
    if isinstance(value, str) and CELL.match(value):
        try:
            found = json.loads(value)
            value = found if any(map(is_message, found if isinstance(found, list) else [found])) else value
        except (ValueError, RecursionError):
            if DAMAGED.search(value):
                raise ValueError(f"{where}, field {field!r}: looks like a list of messages, but is not valid JSON "
                                 "(cut short, or Python's single quotes): write the column with json.dumps, or use "
                                 f".jsonl; got {short(value)}") from None
    return [value] if is_message(value) else value

def read_messages(value, field, where):
    """A list of messages, by role and content or by from and value, in the form used here. Raises ValueError."""
    out = []
    for m in value:
        role = role_of(m).lower() if is_message(m) else None
        content = role and (m.get("value") if m.get("content") is None else m["content"])
        if role and role not in ROLES:
            raise ValueError(f"{where}, field {field!r}: a message has the role {role!r}, and only {', '.join(ROLES)} "
                             "are read: leave such rows out")
        if not role or not isinstance(content, str):
            raise ValueError(f"{where}, field {field!r}: expected messages of role (user, assistant, system) and "
                             f"content, got {short(m)}")
        role = {"Human": "user"}.get(ROLES[role], ROLES[role].lower())
        if role != "system" or content.strip():    # an empty system message says nothing
            out.append({"role": role, "content": content})
    return out

def user(text):
    return {"role": "user", "content": text}

def messages_of_text(text):
    """A prompt of text as messages: its turns where it is a dialogue in HH's format, else one turn of the user's."""
    start, *turns = TURN.split(text)
    if not turns or (start and turns[-2:] != ["Assistant", ""]):
        return [user(text)]
    found = [{"role": {"Human": "user"}.get(role, "assistant"), "content": content.strip()}
             for role, content in zip(turns[::2], turns[1::2])]
    return [{"role": "system", "content": start}] * bool(start.strip()) + found

def system_of(record, where):
    """The column system, as a list of one message or of none."""
    if record.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": text_of(record, "system", where)}]

def history_of(record, where):
    """Earlier turns, of [user, assistant] pairs or of messages, or as JSON for either; None where a row has none."""
    value = record.get("history")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):
            pass
    if value is None:
        return None
    found = []
    for turn in value if isinstance(value, list) else [value]:
        if isinstance(turn, list) and len(turn) == 2 and all(isinstance(side, str) for side in turn):
            sides = zip(("user", "assistant"), turn)
            found += [{"role": role, "content": side} for role, side in sides if side.strip()]
        elif is_message(turn):
            found += read_messages([turn], "history", where)
        else:
            raise ValueError(f"{where}, field 'history': expected a list of [user, assistant] pairs or of messages, or "
                             f"JSON for it, got {short(turn)}")
    return found

# ---------------------------------------------------------------------------------------------------------------------
# parts of a conversation -> one prompt

def same(first, second):
    """Whether two lists hold the same messages, spaces and line breaks aside."""
    key = lambda messages: [(m["role"], m["content"].split()) for m in messages]
    return key(first) == key(second)

def conflict(first, second, where, names):
    said = (f"{name} ({short([m['content'] for m in part])})" for name, part in zip(names, (first, second)))
    return Conflict(f"{where}: {' and '.join(said)} contradict each other: the messages of the second must go on from "
                    "those of the first, or repeat all of them or their end")

def split_system(messages):
    """(the system messages at the beginning, the turns behind them)."""
    n = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return messages[:n], messages[n:]

def joined(first, second, where, names):
    """
    Two lists of messages as one: the first, then what the second adds to it. The second may repeat the first or its
    end, leave out its system message, or hold more before it. names: their fields. Raises Conflict if they do not fit.
    """
    (system, turns), (other, more) = split_system(first), split_system(second)
    if system and other and not same(system, other):
        raise conflict(first, second, where, names)
    n = len(turns)
    if any(same(more[i:i + n], turns) for i in range(len(more) - n + 1)):
        return (other or system) + more
    k = next((k for k in range(min(n, len(more)), 0, -1) if same(turns[n - k:], more[:k])), 0)
    # In a history the same question may come again. Beside a prompt, an answer that begins with an earlier turn of
    # it is ambiguous: it may answer that turn, or come after all of them
    again = names[0] != "history" and any(same([m], more[:1]) for m in turns)
    if more and not k and (turns[-1]["role"] == more[0]["role"] or again):
        raise conflict(first, second, where, names)
    return (other or system) + turns[:n - k] + more

def render(messages):
    """Messages as one dialogue in HH's format, \\n\\nHuman: ...\\n\\nAssistant: ...; a system message as it is."""
    out = ""
    for m in messages:
        if m["role"] == "system":
            out += ("\n\n" if out else "") + m["content"]
        else:
            out += f"\n\n{ROLES[m['role']]}: {m['content']}"
    return out

def prompt_of(record, where):
    """The column prompt: text, messages, or None. An empty cell beside an instruction is none."""
    prompt = parsed(record.get("prompt"), "prompt", where)
    return None if prompt == "" and record.get("instruction") else prompt

def without_empty_end(messages):
    """Messages without an empty turn of the assistant's at their end, which only asks for the answer."""
    asks = messages and messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip()
    return messages[:-1] if asks else messages

def asked_by(record, where):
    """(the text of an instruction, the text of its input or "")."""
    given = text_of(record, "input", where) if record.get("input") else ""
    return text_of(record, "instruction", where), given

def dialogue(record, before, side, where):
    """
    (the whole prompt as messages, the beginning of the answer that it ends with, or "").

    before  the messages that stand before the answer in its own column, `side`
    """
    prompt, history, name = prompt_of(record, where), history_of(record, where) or [], "prompt"
    if isinstance(prompt, list):
        given = read_messages(prompt, "prompt", where)
    elif prompt is None and "instruction" in record:
        given, name = [user("\n\n".join(filter(None, asked_by(record, where))))], "instruction"
    elif prompt in (None, ""):
        given = []
    else:
        given = messages_of_text(text_of(record, "prompt", where))
    given = without_empty_end(given)
    found = joined(given, without_empty_end(before), where, (name, side))
    if not found and not (history and history[-1]["role"] == "user"):
        raise ValueError(f"{where}, field 'prompt': missing or empty, and no message stands before the answer")
    name = name if given else side
    found = joined(history, found, where, ("history", name))
    found = joined(system_of(record, where), found, where, ("system", name))
    return found, found[-1]["content"] if found[-1]["role"] == "assistant" else ""

def instruction(record, where):
    """Alpaca's template. The system message stands before it, and earlier turns inside it, in the same form."""
    asked, given = asked_by(record, where)
    turns = joined(history_of(record, where) or [], [user(asked)], where, ("history", "instruction"))
    *turns, _ = joined(system_of(record, where), turns, where, ("system", "history"))
    title = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:"}
    system, earlier = ("".join(f"{title[m['role']]}{m['content']}\n\n" for m in part) for part in split_system(turns))
    more = ", paired with an input that provides further context" if given else ""
    return system + ALPACA.format(more, earlier, asked, f"### Input:\n{given}\n\n" if given else "")

# ---------------------------------------------------------------------------------------------------------------------
# rows -> examples

def answer_fields(record, pairs, where):
    """The columns that a row's answers stand in."""
    if pairs and not record.keys() & {"chosen", "rejected"}:
        raise ValueError(f"{where}, field 'chosen': missing, as is 'rejected', and pairs need both (texts alone are "
                         f"for train_sft.py, data.py --texts); the row has {', '.join(map(str, record)) or 'nothing'}")
    if pairs:
        return ("chosen", "rejected")
    there = [field for field in ANSWERS if field in record]
    if not there:
        raise ValueError(f"{where}: no answer to train on: expected one of the fields {', '.join(ANSWERS)}; the row "
                         f"has {', '.join(map(str, record)) or 'nothing'}")
    return (next((field for field in there if record[field] is not None), there[0]),)

def split_answer(record, field, where):
    """(messages before the answer, the answer) of a list of messages; (None, the text) of a string."""
    value = parsed(record.get(field), field, where)
    if not isinstance(value, list):
        return None, text_of(record, field, where)
    found = read_messages(value, field, where)
    while field in CONVERSATIONS and found and found[-1]["role"] != "assistant":
        found.pop()    # what was said after the last answer
    if not found or found[-1]["role"] != "assistant":
        raise ValueError(f"{where}, field {field!r}: expected messages that end with the assistant's, got "
                         f"{short(value)}")
    return found[:-1], found[-1]["content"]

def example(prompt, answers):
    return {"prompt": prompt, **dict(zip(("chosen", "rejected"), answers))}

def dialogue_example(record, befores, answers, sides, where):
    """The example of a row that holds messages, or DIFFERENT."""
    try:
        found = [dialogue(record, before or [], side, where) for before, side in zip(befores, sides)]
    except Conflict:
        if any(before != befores[0] for before in befores):
            return DIFFERENT
        raise
    turns, begun = found[0]
    if any(other != found[0] for other in found):
        return DIFFERENT
    if not begun:
        return example(render(turns) + "\n\nAssistant:", [" " + a for a in answers])
    # the answers continue the assistant's turn, or repeat its beginning and continue it
    repeated = all(a.startswith(begun) for a in answers)
    return example(render(turns), [a[len(begun) * repeated:] for a in answers])

def example_of(record, where, pairs):
    """One row of a local file -> a dict with prompt, chosen and, if pairs, rejected; or why the row is dropped."""
    sides = answer_fields(record, pairs, where)
    befores, answers = zip(*(split_answer(record, side, where) for side in sides))
    prompt, history = prompt_of(record, where), history_of(record, where)
    asked = prompt is not None or "instruction" in record
    listed = isinstance(prompt, list) or any(before is not None for before in befores)
    if listed or (history is not None and prompt is not None) or (history and not asked):
        return dialogue_example(record, befores, answers, sides, where)
    if prompt is None and asked:
        return example(instruction(record, where), answers)
    if not asked and sides != ("text",):
        raise ValueError(f"{where}, field 'prompt': missing, as is 'instruction'; the row has "
                         f"{', '.join(map(str, record))}")
    text, system = text_of(record, "prompt", where) if asked else "", render(system_of(record, where))
    return example(system + ("" if not system or text.startswith("\n") else "\n\n") + text, answers)

# ---------------------------------------------------------------------------------------------------------------------
# what is said of a file

# the last words of the names of columns that hold no text to learn from
ABOUT = set("id ids idx index uuid hash source dataset subset split score scores rating ratings category lang language "
            "license licence url date time timestamp at model models version label labels type tag tags domain".split())
ENDS = ("<|endoftext|>", "</s>", "<|im_end|>", "<|eot_id|>")

def is_text(value):
    """Whether a value is text, or a list with text in it; a number written as text is none."""
    if isinstance(value, str):
        return bool(value.strip()) and not re.fullmatch(r"\s*[-+]?[\d.,:eE+-]*%?\s*", value)
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(map(is_text, value))

def unused_columns(record, pairs, where):
    """Names of a row's columns that hold text which neither its prompt nor its answers are made of."""
    used = {*answer_fields(record, pairs, where), "system", "history"}
    used |= {"rejected"} if "chosen" in used else set()    # SFT on pairs takes the chosen one
    if prompt_of(record, where) is not None:
        used |= {"prompt"}
    elif "instruction" in record:
        used |= {"instruction", "input"}
    known = [record.get(field) for field in used]
    others = {name: value for name, value in record.items() if name not in used and not isinstance(value, dict)}
    return [name for name, value in others.items()
            if re.split(r"[\W_]+", name.lower())[-1] not in ABOUT and is_text(value) and value not in known]

def label_of(record, pairs, where):
    """Whether a row's answer is wanted, as KTO's rows say it; a number where the label is another one; else None."""
    label = str(record.get("label")).strip().lower()
    if pairs or "rejected" in record:
        return None
    if label in ("true", "false"):
        return label == "true"
    if answer_fields(record, pairs, where) == ("text",) or not re.fullmatch(r"-?\d+(\.\d+)?", label):
        return None    # a film review labelled 0 is a negative one, and still a text
    return {1: True, 0: False}.get(float(label), float(label))

def goes_on(record, pairs, where):
    """Whether a conversation has turns after its last answer."""
    field = answer_fields(record, pairs, where)[0]
    value = parsed(record[field], field, where) if field in CONVERSATIONS else None
    return isinstance(value, list) and read_messages(value, field, where)[-1]["role"] != "assistant"

class Remarks:
    """What is to be said of a data set once all of it is read, and which of its rows are labelled false."""
    def __init__(self, pairs):
        self.pairs, self.columns, self.ends, self.longer, self.labels = pairs, {}, Counter(), 0, {}

    def note(self, split, example, record=None, where=None):
        """An example of a split; record and where: the row of a local file that it was made from."""
        self.ends.update(end for side in ("chosen", "rejected") for end in ENDS
                         if example.get(side, "").rstrip().endswith(end))
        if record is not None:
            self.columns |= dict.fromkeys(unused_columns(record, self.pairs, where))
            self.longer += goes_on(record, self.pairs, where)
            self.labels.setdefault(split, []).append(label_of(record, self.pairs, where))

    def drop_unwanted(self, splits):
        """Takes out the examples labelled false, unless the labels are numbers of several classes. Returns how many."""
        if any(isinstance(label, float) for part in self.labels.values() for label in part):
            return 0
        before = sum(map(len, splits.values()))
        for split, labels in self.labels.items():
            splits[split] = [e for e, label in zip(splits[split], labels) if label is not False]
        return before - sum(map(len, splits.values()))

    def lines(self):
        if self.columns:
            yield f"columns with text that are not used: {', '.join(self.columns)}"
        if self.longer:
            yield f"{self.longer:,} conversations go on after their last answer; what stands there is not used"
        for end, n in self.ends.items():
            yield (f"{n:,} answers end in a written {end}, which is trained on as text: remove it from the file, the "
                   "end of every answer is marked anyway")
