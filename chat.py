"""
The prompt format of a run, its answers to one prompt, and a chat with it on the terminal.

    python eval.py --run out/hh/dpo --prompt "How do I keep basil alive?"
    python eval.py --run out/hh/dpo --chat

A policy answers best in the format of its training prompts. So the train scripts record this format in args.json, and
the functions here put a question into it. See docs/data.md. Read first: data.py, sampling.py. Read next: eval.py
"""
import os
from collections import defaultdict

import data
import sampling
from adapters import as_reference
from support import tokenizers
from support.messages import ALPACA, TURN, short
from support.sources import DIALOGUES

# A format is a dict: the kind of prompts, and the texts before and after a question
PLAIN = {"kind": "plain", "before": "", "after": ""}
DIALOGUE = {"kind": "dialogue", "before": "\n\nHuman: ", "after": "\n\nAssistant:"}
PREAMBLE = ALPACA[:ALPACA.index("{}")]    # the template's first words, which are the same with and without an input
BEFORE_INSTRUCTION, AFTER_INSTRUCTION = ALPACA.format("", "", "\0", "").split("\0")    # \0: the instruction's place
# A text with the mark of its kind is in the format already
MARKS = {"dialogue": "\n\nHuman:", "instruction": "### Instruction:"}

# ---------------------------------------------------------------------------------------------------------------------
# the format of prompts

def kind_of(text):
    """The layout of one prompt: dialogue, instruction (Alpaca's template) or plain."""
    if TURN.findall(text)[-1:] == ["Assistant"]:
        return "dialogue"
    if PREAMBLE in text and text.endswith(AFTER_INSTRUCTION):
        return "instruction"
    return "plain"

def whole_lines(texts):
    """The whole lines that all texts begin with, and those that all end with; ("", "") if all texts are equal."""
    if len(set(texts)) < 2:
        return "", ""
    shared = os.path.commonprefix(texts)
    before = shared[:shared.rfind("\n") + 1]
    # The end that all share is the beginning that all share when the texts are read backward
    backward = [text[len(before):][::-1] for text in texts]
    shared = os.path.commonprefix(backward)[::-1]
    after = shared[shared.find("\n"):] if "\n" in shared else ""
    return before, after

def shared_system(texts, mark):
    """The text before the first mark, which is a system message, if it is the same in all texts; else ""."""
    # A prompt that was cut at its beginning may have no mark
    systems = {text.split(mark)[0] if mark in text else "" for text in texts}
    return systems.pop() if len(systems) == 1 else ""

def prompt_format(rows, tokenizer):
    """
    The format of the prompts of rows (token lists), found from at most 1,000 of them. If they are of several kinds, the
    most frequent kind counts. A system message, or whole lines, that all prompts of this kind share are in the format.
    """
    prompts = [row["prompt"] for row in rows[::len(rows) // 1000 + 1]]
    by_kind = defaultdict(list)
    for prompt in prompts:
        text = data.decode(tokenizer, prompt)
        kind = "text" if prompt[0] == tokenizer.eot_token else kind_of(text)
        by_kind[kind].append(text)
    kind, texts = max(by_kind.items(), key=lambda item: len(item[1]))
    before, after = "", ""
    if kind == "plain":
        before, after = whole_lines(texts)
    elif kind == "dialogue":
        before, after = shared_system(texts, MARKS[kind]) + DIALOGUE["before"], DIALOGUE["after"]
    elif kind == "instruction":
        before, after = shared_system(texts, PREAMBLE) + BEFORE_INSTRUCTION, AFTER_INSTRUCTION
    return {"kind": kind, "before": before, "after": after}

def form_of(facts):
    """The prompt format in a run's args.json. Older runs have no record of it: theirs is that of the data set."""
    default = DIALOGUE if facts["args"]["data"] in DIALOGUES else PLAIN
    form = facts.get("prompt_format", default)
    if not isinstance(form, dict) or not all(isinstance(form.get(key), str) for key in PLAIN):
        raise ValueError(f"args.json: prompt_format is damaged: expected texts {', '.join(PLAIN)}, got {short(form)}")
    return form

def wrap(text, form):
    """A question in a run's format. A question that is in it already stays as it is."""
    if form["kind"] in MARKS:
        is_wrapped = MARKS[form["kind"]] in text
    else:
        is_wrapped = text.startswith(form["before"]) and text.endswith(form["after"])
    return text if is_wrapped else form["before"] + text + form["after"]

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
    One completion of each prompt (token lists): {"before": by the reference, "after": by the policy}; without a
    reference only "after".
    """
    def complete(model):
        return sampling.sample_completions(model, tokenizer, prompts, max_new_tokens,
                                           temperature=temperature, seed=seed)
    if reference is None:
        return {"after": complete(policy)}
    with as_reference(policy, reference) as model:
        before = complete(model)
    return {"before": before, "after": complete(policy)}

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

def prompt_of(turns, question, form):
    """The prompt of a question. turns: earlier pairs of question and answer, which a dialogue's prompt repeats."""
    if not turns:
        return wrap(question, form)
    earlier = "".join(f"{asked}{form['after']}{answered}{DIALOGUE['before']}" for asked, answered in turns)
    return form["before"] + earlier + question + form["after"]

def fit_turns(turns, question, form, tokenizer, max_len, least):
    """Drops the oldest turns until the answer has room for `least` tokens: (the kept turns, the prompt's tokens)."""
    for n_dropped in range(len(turns) + 1):
        tokens = encode(prompt_of(turns[n_dropped:], question, form), form, tokenizer)
        if max_len - len(tokens) >= least:
            break
    return turns[n_dropped:], tokens

def chat(policy, tokenizer, facts, max_new_tokens=None, temperature=1.0, seed=0):
    """
    The policy answers questions from the terminal, until an empty line, Ctrl-D or Ctrl-C. A run on dialogues sees the
    earlier turns. The oldest are dropped when they leave too little room for the answer.
    """
    form, max_len = form_of(facts), facts["args"]["max_len"]
    least = min(max_new_tokens or max_len // 4, max_len // 2)    # tokens of an answer for which earlier turns are kept
    is_dialogue = form["kind"] == "dialogue"
    turns, n_answered = [], 0    # turns stays empty if the run is not on dialogues
    how = "earlier turns are kept" if is_dialogue else f"each prompt stands alone, as {form['kind']}"
    print(f"{how}; an empty line or Ctrl-D ends the chat")
    try:
        while question := input("> ").strip():
            kept, tokens = fit_turns(turns, question, form, tokenizer, max_len, least)
            if len(kept) < len(turns):
                print(f"(the run's models take {max_len} tokens; oldest turns left out: {len(turns) - len(kept)})")
            turns = kept
            room = max_len - len(tokens)
            if room < 1:
                print(f"(the prompt has {len(tokens)} tokens, and the run's models take {max_len} with the answer)")
                continue
            [out] = sampling.sample_completions(policy, tokenizer, [tokens], min(room, max_new_tokens or room),
                                                temperature=temperature, seed=seed + n_answered)
            text = data.decode(tokenizer, out)
            if is_dialogue:
                text = text.split(MARKS["dialogue"])[0]    # a policy may write the next question too
                turns.append((question, text))
            print(text.strip() + "\n")
            n_answered += 1
    except (EOFError, KeyboardInterrupt):    # Ctrl-D, Ctrl-C
        print()
