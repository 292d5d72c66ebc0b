"""
What an LLM judge is asked, and how: the texts of the questions, both orders of every pair, and the answers on the disk.

A question shows two answers, A and B. It ends in an instruction: `text` asks for a reason and a line "Better: A",
`choice` for one letter, because small models cannot keep to the form of `text`. Answers are appended to a file as they
arrive. This file has no command: judge.py asks with it. See docs/judge.md. Read next: judge.py
"""
import asyncio
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

from support.checkpoint import read_json
from support.endpoint import ask_all, known_answers
from support.verdict import read_verdict, vote_in

ASK = {    # task -> the question; an instruction follows it
    "dialogue": "Below are a person's message to an assistant and two answers to it. A good answer helps with what was "
                "asked, is right, and does no harm.\n\n<message>\n{prompt}\n</message>\n\n"
                "<answer A>\n{a}\n</answer A>\n\n<answer B>\n{b}\n</answer B>\n\n",
    "summary": "Below are a text and two summaries of it. A good summary has the main points, adds nothing that is not "
               "in the text, and is short.\n\n<text>\n{prompt}\n</text>\n\n"
               "<answer A>\n{a}\n</answer A>\n\n<answer B>\n{b}\n</answer B>\n\n",
    "sentiment": "Below are two film reviews. The better one is the one that is more positive about its film.\n\n"
                 "<review A>\n{review_a}\n</review A>\n\n<review B>\n{review_b}\n</review B>\n\n"}
WHICH = {"dialogue": "Which answer is better?", "summary": "Which summary is better?",
         "sentiment": "Which review is more positive?"}
VERDICT = {    # the form of the verdict -> the instruction
    "text": "First compare the two in one or two sentences. Then give your verdict on a line of its own, as one of\n"
            "Better: A\nBetter: B\nBetter: neither",
    "choice": "{which} Answer with one letter, A or B, and nothing else."}

def form(task, verdict):
    """The name of a question: its task, and the form of the verdict unless it is text."""
    return task if verdict == "text" else f"{task}, {verdict}"

QUESTIONS = {form(task, verdict): ASK[task] + VERDICT[verdict].replace("{which}", WHICH[task])
             for verdict in VERDICT for task in ASK}

def read_evaluation(run):
    """What a run's eval.json holds. Raises ValueError if eval.py has not written it."""
    found = read_json(Path(run) / "eval.json")
    samples = found.get("samples") if isinstance(found, dict) and "temperature" in found else None
    whole = lambda s: isinstance(s, dict) and all(isinstance(s.get(name), str) for name in ("prompt", "after"))
    if not isinstance(samples, list) or not all(map(whole, samples)):
        raise ValueError(f"{run}: eval.json is not as eval.py writes it: run eval.py again")
    return found

def questions(samples, *, against, task, model):
    """
    Two questions for each sample, in both orders: dicts of name, key and text. task: a name in QUESTIONS.
    The key identifies the text and the model that is asked, so that the same question is asked once.
    """
    out = []
    for pair, s in enumerate(samples, 1):
        prompt, mine, other = s["prompt"].strip(), s["after"].strip(), s[against].strip()
        for swapped in (False, True):
            a, b = (other, mine) if swapped else (mine, other)
            whole = {"review_a": f"{prompt} {a}".strip(), "review_b": f"{prompt} {b}".strip()}
            text = QUESTIONS[task].format(prompt=prompt, a=a, b=b, **whole)
            key = hashlib.sha256(f"{model}\n{text}".encode()).hexdigest()[:24]
            out.append({"name": f"pair {pair}{', swapped' if swapped else ''}", "key": key, "text": text})
    return out

def estimate(todo, max_tokens, price):
    """The cost of questions as text: tokens, and dollars if price (in, out) per million tokens is not None."""
    tokens_in = sum(len(q["text"]) for q in todo) // 4    # 4 characters per token
    tokens_out = min(100, max_tokens) * len(todo)
    most = max_tokens * len(todo)                         # a reasoning model may come near it
    said = f"about {tokens_in:,} tokens in and {tokens_out:,} out, at most {most:,}"
    if price:
        dollars = [(tokens_in * price[0] + out * price[1]) / 1e6 for out in (tokens_out, most)]
        said += f", about ${dollars[0]:.2f}, at most ${dollars[1]:.2f}"
    return said

def ask(todo, known, path, *, verdict="text", **endpoint):
    """
    Asks questions. Adds each answer to the file at path and to known, {key: answer}. Returns a reason for each failure.
    verdict: the form that is asked for. endpoint: what ask_all takes: url, key, model, workers, timeout, max_tokens
    """
    def keep(i, answer):
        key = todo[i]["key"]
        with open(path, "a", encoding="utf-8") as f:
            print(json.dumps({"key": key} | answer), file=f, flush=True)
            os.fsync(f.fileno())
        known[key] = answer["answer"]    # it counts once it is on the disk

    return asyncio.run(ask_all([(q["name"], q["text"]) for q in todo], keep, **endpoint,
                               vote_in=vote_in if verdict == "choice" else None))

def endpoint_of(args):
    """The endpoint and the form of the verdict that the flags of judge.py name, as ask_missing takes them."""
    return {"url": args.judge_url, "key": os.environ.get(args.judge_key) or "none", "model": args.judge_model,
            "workers": args.judge_workers, "timeout": args.judge_timeout, "max_tokens": args.judge_max_tokens,
            "price": args.judge_price, "verdict": args.verdict}

def ask_missing(asked, path, *, price, **endpoint):
    """
    Prints what is to be asked, and asks the questions that have no answer in the file at path. Returns
    ({key: answer}, reasons of failures). asked: both orders of each pair. endpoint: what ask takes.
    """
    known = known_answers(path)
    todo = list({q["key"]: q for q in asked if q["key"] not in known}.values())    # each once
    waits = f"; each waits {endpoint['timeout']:g} s at most" if todo else ""
    print(f"{len(asked) // 2} pairs in both orders: {sum(q['key'] in known for q in asked)} answers are there, "
          f"{len(todo)} questions to ask {endpoint['model']}, {estimate(todo, endpoint['max_tokens'], price)}{waits}")
    return known, ask(todo, known, path, **endpoint) if todo else []

OTHER = {"text": "try --verdict choice, which asks for one letter, or another --judge_model",
         "choice": "try another --judge_model, or --verdict text if the model thinks before it answers"}

def check_answers(asked, known, failures, path, verdict):
    """
    Exits with status 1 if questions got no answer, if more than half of the answers have no readable verdict, or if no
    pair has two readable ones. asked: both orders of each pair.
    """
    if failures:
        reason, n = Counter(failures).most_common(1)[0]
        n_skipped = len({q["key"] for q in asked} - known.keys()) - len(failures)
        skipped = f" and {n_skipped} were not asked" if n_skipped else ""
        raise SystemExit(f"error: {len(failures)} questions got no answer{skipped} ({n} times: {reason}); the same "
                         "command asks them again")
    verdicts = [read_verdict(known[q["key"]]) for q in asked]
    unread = [known[q["key"]] for q, said in zip(asked, verdicts) if said is None]
    pairs = sum(None not in both for both in zip(verdicts[::2], verdicts[1::2]))
    if len(unread) > len(asked) / 2 or not pairs:
        number = f"none of the {len(asked)}" if len(unread) == len(asked) else f"{len(unread)} of {len(asked)}"
        has = "has a" if number.startswith("none") else "have no"
        rates = "" if pairs or len(unread) == len(asked) else "; no pair has two readable verdicts"
        raise SystemExit(f"error: {number} answers {has} verdict that can be read, such as {unread[0][-80:]!r} "
                         f"(all are in {path}){rates}: {OTHER[verdict]}")
