"""
Judges whose bias is known, as functions: question -> answer. And a local endpoint that any of them can stand behind.

    with judges.serving(judges.first) as there:
        judge.main(["--run", run, "--judge_url", there.url])

Each judge is deterministic: the same question gives the same answer, in any order and in any process. A question that
asks for one letter is answered with one letter; `soft` adds the log-probs of A and B that a model's endpoint sends.
"""
import hashlib
import json
import math
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import toy

# ---------------------------------------------------------------------------------------------------------------------
# questions

def shown(text):
    """(prompt, answer A, answer B) of a question. The prompt is "" where only two reviews are shown."""
    prompt = re.search(r"<(?:message|text)>\n(.*?)\n</(?:message|text)>", text, re.S)
    sides = [re.search(rf"<(?:answer|review) {side}>\n(.*?)\n</", text, re.S) for side in "AB"]
    return (prompt[1] if prompt else "", *(side[1] for side in sides))

def one_letter(text):
    """Whether a question asks for one letter alone."""
    return "one letter" in text

def said(text, vote):
    """The answer to a question whose vote is A, B or neither, in the form that the question asks for."""
    if one_letter(text):
        return "AB"[share(text) < 0.5] if vote == "neither" else vote    # it has to choose, in either order by chance
    return f"They differ in detail.\n\nBetter: {vote}"

def share(text):
    """A number in [0, 1) from a hash of the text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32

def larger(text, measure):
    """The answer of a judge that prefers the larger measure. measure: a function of a prompt and an answer."""
    prompt, *answers = shown(text)
    a, b = (measure(prompt, answer) for answer in answers)
    return said(text, "A" if a > b else "B" if b > a else "neither")

def log_odds(prompt, answer):
    """The toy world's exact log-odds of a review, in the grammar's spelling or in plain words."""
    return toy.log_odds(f"{prompt} {answer}".lower().replace(",", " ,"))

# ---------------------------------------------------------------------------------------------------------------------
# judges

def honest(text, body=None):
    """Prefers the review that is more positive by the toy world's exact reward. It has no bias."""
    return larger(text, log_odds)

def contrary(text, body=None):
    """Prefers the review that is less positive."""
    return larger(text, lambda prompt, answer: -log_odds(prompt, answer))

def first(text, body=None):
    """Position bias: the answer that stands first, whatever it says."""
    return said(text, "A")

def second(text, body=None):
    """Position bias: the answer that stands second."""
    return said(text, "B")

def long(text, body=None):
    """Length bias: the answer with more words."""
    return larger(text, lambda prompt, answer: len(answer.split()))

def short(text, body=None):
    """Length bias: the answer with fewer words."""
    return larger(text, lambda prompt, answer: -len(answer.split()))

def sentiment(text, body=None):
    """Counts good words less bad words. It does not read "not", and the verdict counts no more than an opinion."""
    words = lambda answer: re.findall(r"[a-z]+", answer.lower())
    good, bad = {*toy.GOOD, *toy.GEM}, {*toy.BAD, *toy.BORE}
    return larger(text, lambda prompt, answer: sum((w in good) - (w in bad) for w in words(answer)))

def chance(text, body=None):
    """A or B by a hash of the question: no bias, and no skill."""
    return said(text, "AB"[share(f"chance {text}") < 0.5])

def unreadable(text, body=None):
    """Never a verdict, in either form."""
    return "Both" if one_letter(text) else "Both have their merits, and much can be said for each."

ALL = (honest, contrary, first, second, long, short, sentiment, chance, unreadable)
JUDGES = {judge.__name__: judge for judge in ALL}

def mixed(judge, other, portion):
    """A judge that answers as `other` on a portion (0 to 1) of the questions, chosen by a hash, and else as `judge`."""
    return lambda text, body=None: (other if share(f"mixed {text}") < portion else judge)(text, body)

def soft(judge, p=0.9):
    """A judge whose endpoint sends log-probs: p for the letter that the judge prefers, 1 - p for the other."""
    def say(text, body=None):
        letter = judge(text, body)
        if letter not in ("A", "B"):
            return letter
        other = "AB".replace(letter, "")
        return {"content": letter, "finish": "length", "logprobs": {letter: math.log(p), other: math.log(1 - p)}}
    return say

# ---------------------------------------------------------------------------------------------------------------------
# an endpoint that records what it is asked

def log_probs(found):
    """The field `logprobs` of a reply. found: {token: log-prob} of its first token, the most probable one first."""
    top = [{"token": token, "logprob": lp, "bytes": None} for token, lp in found.items()]
    return {"content": [top[0] | {"top_logprobs": top}] if top else []}

class Endpoint:
    """
    say(text, body) gives an answer, or a dict of status, error, content, finish, seconds, logprobs. asked: the bodies
    in order. logprobs: {token: log-prob}, or the field as it is sent; it is sent where the question asks for it.
    reply: the whole reply, in place of a chat completion.
    """
    def __init__(self, say):
        self.asked, lock, here = [], threading.Lock(), self
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    here.asked.append(body)
                said = say(body["messages"][0]["content"], body)
                said = said if isinstance(said, dict) else {"content": said}
                time.sleep(said.get("seconds", 0))
                message = {"role": "assistant"} | {k: said[k] for k in ("content", "reasoning_content") if k in said}
                choice = {"index": 0, "finish_reason": said.get("finish", "stop"), "message": message}
                if body.get("logprobs") and "logprobs" in said:
                    found = said["logprobs"]
                    choice["logprobs"] = found if "content" in found else log_probs(found)
                reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                reply = {"error": {"message": said["error"]}} if "error" in said else said.get("reply", reply)
                reply = json.dumps(reply).encode()
                try:
                    self.send_response(said.get("status", 200))
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(reply)))
                    self.end_headers()
                    self.wfile.write(reply)
                except OSError:
                    pass    # the judge did not wait
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=lambda: self.http.serve_forever(0.02), daemon=True).start()

    @property
    def texts(self):
        return [body["messages"][0]["content"] for body in self.asked]

    def close(self):
        self.http.shutdown()
        self.http.server_close()

@contextmanager
def serving(say):
    """An endpoint that answers as say does, as long as the block runs."""
    there = Endpoint(say)
    try:
        yield there
    finally:
        there.close()
