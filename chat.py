"""
The prompt format of a run, its answers to one prompt, and a chat with it on the terminal.

    python eval.py --run out/hh/dpo --prompt "How do I keep basil alive?"
    python eval.py --run out/hh/dpo --chat

A policy answers best in the format of its training prompts. So the train scripts record this format in args.json, and
the functions here put a question into it: before + question + after, for a format {"kind", "before", "after"}.
See docs/data.md. Read first: data.py, sampling.py. Read next: eval.py
"""
import os
from collections import defaultdict
from contextlib import nullcontext

import data
import sampling
from adapters import as_reference
from support import tokenizers
from support.messages import ALPACA, TURN, short
from support.sources import DIALOGUES

PLAIN = {"kind": "plain", "before": "", "after": ""}
DIALOGUE = {"kind": "dialogue", "before": "\n\nHuman: ", "after": "\n\nAssistant:"}
PREAMBLE = ALPACA[:ALPACA.index("{}")]                        # its first words, the same with and without an input
INSTRUCTION = ALPACA.format("", "", "\0", "").split("\0")     # the text before and after an instruction
# A question with the mark of its kind is in the format already
MARKS = {"dialogue": "\n\nHuman:", "instruction": "### Instruction:"}

# ---------------------------------------------------------------------------------------------------------------------
# the format of prompts

def kind_of(text):
    """The layout of one prompt: dialogue, instruction (Alpaca's template), text (the prompt is empty) or plain."""
    if TURN.findall(text)[-1:] == ["Assistant"]:
        return "dialogue"
    if PREAMBLE in text and text.endswith(INSTRUCTION[1]):
        return "instruction"
    return "plain" if text else "text"

def whole_lines(texts):
    """The whole lines that all texts begin with, and those that all end with; ("", "") if all texts are equal."""
    if len(set(texts)) < 2:
        return "", ""
    shared = os.path.commonprefix(texts)
    before = shared[:shared.rfind("\n") + 1]
    # The end is the beginning of the reversed rest
    reversed_rests = [text[len(before):][::-1] for text in texts]
    shared = os.path.commonprefix(reversed_rests)[::-1]
    after = shared[shared.find("\n"):] if "\n" in shared else ""
    return before, after

def shared_system(texts, mark):
    """The text before the first mark, which is a system message, if it is the same in all texts; else ""."""
    # A prompt that was cut at its beginning may have no mark
    systems = {text.split(mark)[0] if mark in text else "" for text in texts}
    return systems.pop() if len(systems) == 1 else ""

def prompt_format(rows, tokenizer):
    """
    The format of the prompts of rows (token lists), read off at most 1,000 of them. If rows are of several kinds, it is
    the most frequent one. A system message, or whole lines, that all its prompts share are part of it.
    """
    prompts = [row["prompt"] for row in rows[::len(rows) // 1000 + 1]]
    by_kind = defaultdict(list)
    for prompt in prompts:
        text = data.decode(tokenizer, prompt)
        kind = "text" if prompt[0] == tokenizer.eot_token else kind_of(text)
        by_kind[kind].append(text)
    kind = max(by_kind, key=lambda name: len(by_kind[name]))
    texts = by_kind[kind]
    before, after = "", ""
    if kind == "plain":
        before, after = whole_lines(texts)
    elif kind == "dialogue":
        before, after = shared_system(texts, MARKS[kind]) + DIALOGUE["before"], DIALOGUE["after"]
    elif kind == "instruction":
        before, after = shared_system(texts, PREAMBLE) + INSTRUCTION[0], INSTRUCTION[1]
    return {"kind": kind, "before": before, "after": after}

def form_of(facts):
    """The prompt format in a run's args.json. Older runs have no record of it: theirs is that of the data set."""
    default = DIALOGUE if facts["args"]["data"] in DIALOGUES else PLAIN
    form = facts.get("prompt_format", default)
    if not isinstance(form, dict) or not all(isinstance(form.get(key), str) for key in PLAIN):
        raise ValueError(f"args.json: prompt_format is damaged: expected texts {', '.join(PLAIN)}, got {short(form)}")
    return form

def is_wrapped(text, form):
    """Whether a question is in a format already."""
    if form["kind"] in MARKS:
        return MARKS[form["kind"]] in text
    return text.startswith(form["before"]) and text.endswith(form["after"])

def wrap(text, form):
    """A question in a run's format. A question that is in it already stays as it is."""
    if is_wrapped(text, form):
        return text
    return form["before"] + text + form["after"]

def encode(text, form, tokenizer, where="the prompt"):
    """A prompt's tokens. As in training, an EOS stands in place of an empty prompt, and before a text to continue."""
    tokens = tokenizers.encode(tokenizer, [text], where)[0]
    if form["kind"] == "text" or not tokens:
        return [tokenizer.eot_token, *tokens]
    return tokens

# ---------------------------------------------------------------------------------------------------------------------
# answers of the reference and of the policy

def answers(policy, reference, tokenizer, prompts, max_new_tokens, temperature, seed):
    """
    One completion of each prompt (token lists): {"before": by the reference, "after": by the policy}. A run without a
    reference has "after" alone.
    """
    found = {}
    for name, model in (("before", as_reference(policy, reference)), ("after", nullcontext(policy))):
        with model as m:
            if m is not None:
                found[name] = sampling.sample_completions(m, tokenizer, prompts, max_new_tokens,
                                                          temperature=temperature, seed=seed)
    return found

def answer(loaded, prompt, autocast, *, n_answers, max_new_tokens, temperature, seed):
    """
    Prints n_answers answers of the reference and of the policy to one prompt. loaded: (the facts of args.json, the
    policy, the reference) of a run. Raises ValueError if the prompt leaves no room for an answer.
    """
    facts, policy, reference = loaded
    tokenizer = data.get_tokenizer(facts["args"]["data"], policy.config.vocab_size)
    form, max_len = form_of(facts), facts["args"]["max_len"]
    text = wrap(prompt, form)
    tokens = encode(text, form, tokenizer, "--prompt")
    room = max_len - len(tokens)
    if room < 1:
        raise ValueError(f"--prompt has {len(tokens)} tokens, and the run's models take {max_len} with the answer")
    room = min(room, max_new_tokens or room)
    with autocast:
        found = answers(policy, reference, tokenizer, [tokens] * n_answers, room, temperature, seed)
    for i in range(n_answers):
        sample = {"prompt": text} | {name: data.decode(tokenizer, several[i]) for name, several in found.items()}
        print("\n".join(sample_lines(sample)) + "\n")

def sample_lines(sample):
    """Lines of text: a prompt and its completions before and after training, with their rewards if they have any."""
    lines = ["prompt   " + sample["prompt"].strip()]
    for name in ("before", "after"):
        if name in sample:
            rewards = sample.get("rewards", {}).get(name, {})
            listed = ", ".join(f"{key} {value:.3f}" for key, value in rewards.items())
            lines.append(f"{name:9}{sample[name].strip()}" + (f"   ({listed})" if listed else ""))
    return lines

# ---------------------------------------------------------------------------------------------------------------------
# turn by turn

def ask():
    """A line from the terminal; "" at the end of the input."""
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""

def prompt_of(turns, question, form):
    """The prompt of a question. turns: earlier pairs of question and answer, which a dialogue's prompt repeats."""
    if form["kind"] != "dialogue":
        return wrap(question, form)
    earlier = "".join(f"{asked}{form['after']}{answer}{DIALOGUE['before']}" for asked, answer in turns)
    return form["before"] + earlier + question + form["after"]

def fit_turns(turns, question, form, tokenizer, max_len, least):
    """(the kept turns, the prompt's tokens). The oldest turns are dropped until the answer has `least` tokens."""
    tokens = encode(prompt_of(turns, question, form), form, tokenizer)
    while turns and max_len - len(tokens) < least:
        turns = turns[1:]
        tokens = encode(prompt_of(turns, question, form), form, tokenizer)
    return turns, tokens

def chat(policy, tokenizer, facts, max_new_tokens=None, temperature=1.0, seed=0):
    """
    The policy answers questions from the terminal, until an empty line, Ctrl-D or Ctrl-C. A run on dialogues sees the
    earlier turns. The oldest are dropped when they leave the answer less than max_new_tokens, or than a quarter of the
    run's max_len.
    """
    form, max_len = form_of(facts), facts["args"]["max_len"]
    least = min(max_new_tokens or max_len // 4, max_len // 2)
    is_dialogue = form["kind"] == "dialogue"
    turns, n_answered = [], 0
    how = "earlier turns are kept" if is_dialogue else f"each prompt stands alone, as {form['kind']}"
    print(f"{how}; an empty line or Ctrl-D ends the chat")
    try:
        while question := ask():
            kept, tokens = fit_turns(turns if is_dialogue else [], question, form, tokenizer, max_len, least)
            if is_dialogue and len(kept) < len(turns):
                print(f"(the run's models take {max_len} tokens; oldest turns left out: {len(turns) - len(kept)})")
            turns = kept
            room = max_len - len(tokens)
            if room < 1:
                print(f"(the prompt has {len(tokens)} tokens, and the run's models take {max_len} with the answer)")
                continue
            [out] = sampling.sample_completions(policy, tokenizer, [tokens], min(room, max_new_tokens or room),
                                                temperature=temperature, seed=seed + n_answered)
            answer = data.decode(tokenizer, out)
            if is_dialogue:
                answer = answer.split(MARKS["dialogue"])[0]    # a policy may write the next question too
            print(answer.strip() + "\n")
            turns.append((question, answer))
            n_answered += 1
    except KeyboardInterrupt:
        print()
