"""
The form of a run's prompts, as args.json records it, answers to one prompt, and a chat with a run on the terminal.

    python eval.py --run out/hh/dpo --chat

Read next: eval.py
"""
import os
from collections import Counter
from contextlib import nullcontext

from support import tokenizers
import data
import sampling
from adapters import as_reference
from support.messages import ALPACA, TURN, short
from support.sources import DIALOGUES

PLAIN = {"kind": "plain", "before": "", "after": ""}
DIALOGUE = {"kind": "dialogue", "before": "\n\nHuman: ", "after": "\n\nAssistant:"}
PREAMBLE, INSTRUCTION = ALPACA[:ALPACA.index("{}")], ALPACA.format("", "", "\0", "").split("\0")    # with no input
MARKS = {"dialogue": "\n\nHuman:", "instruction": "### Instruction:"}

# ---------------------------------------------------------------------------------------------------------------------
# the form of prompts

def kind_of(text):
    """How one prompt is laid out: dialogue, instruction (Alpaca's template), text (there is no prompt) or plain."""
    if TURN.findall(text)[-1:] == ["Assistant"]:
        return "dialogue"
    if PREAMBLE in text and text.endswith(INSTRUCTION[1]):
        return "instruction"
    return "plain" if text else "text"

def whole_lines(texts):
    """(what all texts begin with, what all end with), in whole lines; ("", "") of texts that are all the same."""
    if len(set(texts)) < 2:
        return "", ""
    before = os.path.commonprefix(texts)
    before = before[:before.rfind("\n") + 1]
    after = os.path.commonprefix([t[len(before):][::-1] for t in texts])[::-1]
    return before, after[after.find("\n"):] if "\n" in after else ""

def prompt_format(rows, tokenizer):
    """
    The form of the prompts of rows of tokens, read off 1,000 of them: {"kind", "before", "after"}. A question in this
    form is before + question + after. Where rows are of several kinds, it is that of most. A system message, or lines,
    that all rows of that kind share are part of it.
    """
    prompts = [row["prompt"] for row in rows[::len(rows) // 1000 + 1]]
    texts = [data.decode(tokenizer, prompt) for prompt in prompts]
    kinds = ["text" if p[0] == tokenizer.eot_token else kind_of(text) for p, text in zip(prompts, texts)]
    kind = Counter(kinds).most_common(1)[0][0]
    texts = [text for text, k in zip(texts, kinds) if k == kind]
    if kind == "text":
        return PLAIN | {"kind": kind}
    if kind == "plain":
        return {"kind": kind, **dict(zip(("before", "after"), whole_lines(texts)))}
    form = DIALOGUE if kind == "dialogue" else {"kind": kind, "before": INSTRUCTION[0], "after": INSTRUCTION[1]}
    first = MARKS["dialogue"] if kind == "dialogue" else PREAMBLE
    systems = {text.split(first)[0] if first in text else "" for text in texts}    # or it was cut
    return form | {"before": (systems.pop() if len(systems) == 1 else "") + form["before"]}

def form_of(facts):
    """The prompt format of a run; a run from before it was recorded has that of its data set."""
    form = facts.get("prompt_format", DIALOGUE if facts["args"]["data"] in DIALOGUES else PLAIN)
    if not (isinstance(form, dict) and all(isinstance(form.get(key), str) for key in PLAIN)):
        raise ValueError(f"args.json: prompt_format is damaged: expected texts {', '.join(PLAIN)}, got {short(form)}")
    return form

def wrap(text, form):
    """A question in a run's form, unless it is in that form already."""
    mark = MARKS.get(form["kind"])
    if mark in text if mark else text.startswith(form["before"]) and text.endswith(form["after"]):
        return text
    return form["before"] + text + form["after"]

def encode(text, form, tokenizer, where="the prompt"):
    """The tokens of a prompt: as in training, a text without a prompt starts behind an EOS."""
    tokens = tokenizers.encode(tokenizer, [text], where)[0]
    return [tokenizer.eot_token] * (form["kind"] == "text" or not tokens) + tokens

# ---------------------------------------------------------------------------------------------------------------------
# answers beside the reference's

def answers(policy, reference, tokenizer, prompts, max_new_tokens, temperature, seed):
    """{"before", "after"}: a completion of each prompt, all token lists, by the reference, if there is one, and by the policy."""
    found = {}
    for name, model in (("before", as_reference(policy, reference)), ("after", nullcontext(policy))):
        with model as m:
            if m is not None:
                found[name] = sampling.sample_completions(m, tokenizer, prompts, max_new_tokens, temperature=temperature, seed=seed)
    return found

def answer(loaded, args, autocast):
    """Prints args.show answers of the reference and of the policy to args.prompt. Raises ValueError if it leaves them no room."""
    facts, policy, reference = loaded
    tokenizer, room = data.get_tokenizer(facts["args"]["data"], policy.config.vocab_size), facts["args"]["max_len"]
    form = form_of(facts)
    text = wrap(args.prompt, form)
    tokens = encode(text, form, tokenizer, "--prompt")
    if (left := room - len(tokens)) < 1:
        raise ValueError(f"--prompt has {len(tokens)} tokens, and the run's models take {room} with the answer")
    with autocast:
        found = answers(policy, reference, tokenizer, [tokens] * args.show, min(left, args.max_new_tokens or left), args.temperature[0],
                        args.seed)
    for i in range(args.show):
        one = {"prompt": text} | {name: data.decode(tokenizer, several[i]) for name, several in found.items()}
        print("\n".join(sample_lines(one)) + "\n")

def sample_lines(sample):
    """A prompt and its completions before and after, one under the other, with their rewards, where there are any."""
    lines = ["prompt   " + sample["prompt"].strip()]
    for name in (n for n in ("before", "after") if n in sample):
        rewards = ", ".join(f"{key} {value:.3f}" for key, value in sample.get("rewards", {}).get(name, {}).items())
        lines.append(f"{name:9}{sample[name].strip()}" + (f"   ({rewards})" if rewards else ""))
    return lines

# ---------------------------------------------------------------------------------------------------------------------
# turn by turn

def ask():
    """A line from the terminal, "" at its end."""
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""

def prompt_of(turns, question, form):
    """The tokens' text of a question behind earlier turns, pairs of question and answer; only a dialogue has any."""
    if form["kind"] != "dialogue":
        return wrap(question, form)
    earlier = "".join(f"{asked}{form['after']}{answer}{DIALOGUE['before']}" for asked, answer in turns)
    return form["before"] + earlier + question + form["after"]

def chat(policy, tokenizer, facts, max_new_tokens=None, temperature=1.0, seed=0):
    """
    The policy answers questions from the terminal, until an empty line, Ctrl-D or Ctrl-C. The prompt of a run on
    dialogues holds the earlier turns. The oldest are dropped when they leave the answer less than max_new_tokens, or
    than a quarter of the tokens that the run takes.
    """
    form, room, turns, n = form_of(facts), facts["args"]["max_len"], [], 0
    least = min(max_new_tokens or room // 4, room // 2)
    how = "earlier turns are kept" if form["kind"] == "dialogue" else f"each prompt stands alone, as {form['kind']}"
    print(f"{how}; an empty line or Ctrl-D ends it")
    try:
        while question := ask():
            turns = turns if form["kind"] == "dialogue" else []
            tokens, before = encode(prompt_of(turns, question, form), form, tokenizer), len(turns)
            while turns and room - len(tokens) < least:
                turns = turns[1:]
                tokens = encode(prompt_of(turns, question, form), form, tokenizer)
            if len(turns) < before:
                print(f"(the run's models take {room} tokens; oldest turns left out: {before - len(turns)})")
            if (left := room - len(tokens)) < 1:
                print(f"(the prompt has {len(tokens)} tokens, and the run's models take {room} with the answer)")
                continue
            out, = sampling.sample_completions(policy, tokenizer, [tokens], min(left, max_new_tokens or left),
                                           temperature=temperature, seed=seed + n)
            answer, n = data.decode(tokenizer, out), n + 1
            if form["kind"] == "dialogue":
                answer = answer.split("\n\nHuman:")[0]    # a policy that goes on writes the next question itself
            print(answer.strip() + "\n")
            turns.append((question, answer))
    except KeyboardInterrupt:
        print()
