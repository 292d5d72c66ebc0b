"""
A local endpoint that a judge with a known bias can stand behind. The judges are those of study/judges.py.

    with judges.serving(judges.first) as there:
        judge.main(["--run", run, "--judge_url", there.url])

Each judge is deterministic: the same question gives the same answer, in any order and in any process. A question that
asks for one letter is answered with one letter; `soft` adds the log-probs of A and B that a model's endpoint sends.
"""
import json
import math
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# for the tests, which name all of them as judges.NAME
from study.judges import ALL, JUDGES, chance, contrary, first, honest, long, mixed, one_letter
from study.judges import larger, log_odds, said, second, sentiment, short, shown, unreadable

__all__ = ["ALL", "JUDGES", "Endpoint", "chance", "contrary", "first", "honest", "larger", "log_odds", "long", "mixed",
           "one_letter", "said", "second", "sentiment", "serving", "short", "shown", "soft", "unreadable"]

# ---------------------------------------------------------------------------------------------------------------------
# judges

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
