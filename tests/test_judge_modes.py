"""Every mode of the judge against endpoints whose verdicts are known: what is asked of whom, and rates equal to counts by hand."""
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support import checkpoint, endpoint
import judge

pytest.importorskip("openai")

# ---------------------------------------------------------------------------------------------------------------------
# an endpoint that records what it is asked

class Endpoint:
    """say(text, body) -> an answer, or a dict: status, error, content, finish, seconds. asked: the bodies in their order."""
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
                reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                reply = json.dumps({"error": {"message": said["error"]}} if "error" in said else reply).encode()
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

@pytest.fixture
def serve():
    there = []
    def start(say):
        there.append(Endpoint(say))
        return there[-1]
    yield start
    for e in there:
        e.http.shutdown()
        e.http.server_close()

# ---------------------------------------------------------------------------------------------------------------------
# samples and judges

# The fair judge prefers more stars. At temperature 1, against before: win, win, lose, tie; against chosen: lose, win, tie, lose.
# At temperature 0.5, against before: lose, win, win, win.
AFTER, COLD = ["one **", "two words ***", "three *", "four *"], ["cold one", "cold two *****", "cold three ***", "cold four **"]
BEFORE, CHOSEN = ["one b *", "b two of three **", "b three **", "b four *"], ["c one ***", "c two *", "c three *", "c four **"]
PROMPTS = ["How is one?", "How is two?", "How is three?", "How is four?"]

@pytest.fixture
def run(tmp_path):
    rows = zip(PROMPTS, BEFORE, AFTER, CHOSEN)
    samples = [{"prompt": f" {p}\n", "before": b, "after": a, "chosen": c} for p, b, a, c in rows]
    found = {"temperature": 1, "samples": samples, "temperatures": [{"temperature": 0.5, "samples": COLD}]}
    (tmp_path / "eval.json").write_text(json.dumps(found))
    return tmp_path

def shown(text):
    """(prompt, answer A, answer B) of a question."""
    part = lambda begin, end: text.split(begin + "\n")[1].split("\n" + end)[0]
    prompt = part("<message>", "</message>") if "<message>" in text else part("<text>", "</text>")
    return prompt, part("<answer A>", "</answer A>"), part("<answer B>", "</answer B>")

def fair(text, body=None):
    a, b = (answer.count("*") for answer in shown(text)[1:])
    return "Stars decide.\nBetter: " + ("A" if a > b else "B" if b > a else "neither")

def contrary(text, body=None):
    return fair(text).replace("Better: A", "Better: x").replace("Better: B", "Better: A").replace("Better: x", "Better: B")

def always_a(text, body=None):
    return "Better: A"

def ask(run, there, *more):
    return judge.main(["--run", str(run), "--judge_url", there.url, *more])

def interval(k, n):
    """Wilson's: the p with |p - k / n| <= 1.96 sqrt(p (1 - p) / n), by bisection from k / n to either side."""
    def end(p, outside):
        for _ in range(60):
            middle = (p + outside) / 2
            inside = abs(middle - k / n) <= 1.96 * math.sqrt(middle * (1 - middle) / n)
            p, outside = (middle, outside) if inside else (p, middle)
        return p
    return [k / n, end(k / n, 0.0), end(k / n, 1.0)]

def rates(**counts):
    """What "rates" holds for counts by hand: all in n but for the invalid, which leave the others' n."""
    n = sum(counts.get(k, 0) for k in ("win", "tie", "lose"))
    of = {"win": n, "tie": n, "lose": n, "flip": n, "invalid": n + counts.get("invalid", 0)}
    return {k: pytest.approx(interval(counts.get(k, 0), of[k]), abs=1e-9) for k in of}

# ---------------------------------------------------------------------------------------------------------------------
# what is asked

@pytest.mark.parametrize("more, mine, theirs, words", [
    ([], AFTER, BEFORE, "message to an assistant"),
    (["--against", "chosen"], AFTER, CHOSEN, "message to an assistant"),
    (["--task", "summary"], AFTER, BEFORE, "two summaries"),
    (["--temperature", "0.5"], COLD, BEFORE, "message to an assistant"),
    (["--task", "summary", "--against", "chosen", "--temperature", "0.5"], COLD, CHOSEN, "two summaries")])
def test_the_texts_that_are_asked(run, serve, more, mine, theirs, words):
    """The run's sample at that temperature is A in one order and B in the other; a wrong text gives a rate as good as any."""
    there = serve(fair)
    ask(run, there, *more)
    want = {(p, *pair) for p, a, b in zip(PROMPTS, mine, theirs) for pair in ((a, b), (b, a))}
    assert set(map(shown, there.texts)) == want and len(there.texts) == len(want) == 8
    for body, text in zip(there.asked, there.texts):
        assert words in text and text.endswith("Better: A\nBetter: B\nBetter: neither")
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("default", 0, 2048)

# ---------------------------------------------------------------------------------------------------------------------
# what is counted

@pytest.mark.parametrize("more, counts, words", [
    # words: winners "one **", "two words ***", "b three **"; losers "one b *", "b two of three **", "three *"
    ([], dict(win=2, tie=1, lose=1), (2 + 3 + 3, 3 + 5 + 2)),
    # winners "c one ***", "two words ***", "c four **"; losers "one **", "c two *", "four *"
    (["--against", "chosen"], dict(win=1, tie=1, lose=2), (3 + 3 + 3, 2 + 3 + 2)),
    (["--temperature", "0.5"], dict(win=3, tie=0, lose=1), (3 + 3 + 3 + 3, 2 + 5 + 3 + 3))])
def test_a_fair_judge_by_hand(run, serve, more, counts, words):
    """A win is the run's: were the direction turned, or the other order's answer taken for the same, the counts would differ."""
    found = ask(run, serve(fair), *more)
    n = counts["win"] + counts["lose"]
    assert found["rates"] == rates(**counts) and found["pairs"] == 4 and found["unanswered"] == 0
    assert found["words"] == {"winners": pytest.approx(words[0] / n), "losers": pytest.approx(words[1] / n)}
    assert found["against"] == ("chosen" if "chosen" in more else "before") and found["judge"] == "default"
    assert json.loads((run / "judge.json").read_text()) == found

def test_a_contrary_judge_turns_wins_and_losses(run, serve):
    """What a fair judge calls a win it calls a loss; ties stay. It is consistent, so no flip."""
    assert ask(run, serve(contrary))["rates"] == rates(win=1, tie=1, lose=2)

def test_a_judge_that_always_says_a_only_flips(run, serve):
    """Its verdict is about the order alone: all ties, all flips, and nobody's words."""
    found = ask(run, serve(always_a))
    assert found["rates"] == rates(tie=4, flip=4) and found["words"] == {}

def test_a_flip_is_a_tie_and_an_invalid_pair_leaves_the_others(run, serve):
    """By hand: pair 1 flips, pair 2 wins, pair 3 has one verdict that cannot be read, pair 4 ties: n = 3, and 4 for the invalid."""
    def say(text, body):
        prompt, a, _ = shown(text)
        return "Better: B" if "one" in prompt else "Hard to say." if "three" in prompt and a == BEFORE[2] else fair(text)
    assert ask(run, serve(say))["rates"] == rates(win=1, tie=2, flip=1, invalid=1)

def test_a_vote_for_one_and_neither_is_a_tie_without_a_flip(run, serve):
    """It is no win: half of the evidence says that there is no difference."""
    found = ask(run, serve(lambda text, body: fair(text) if shown(text)[1] in AFTER else "Better: neither"))
    assert found["rates"] == rates(tie=4)

def test_every_temperature_has_its_own_counts(run, serve, capsys):
    """Each row is of its own samples, and the file's first level is the first row's."""
    found = ask(run, serve(fair), "--temperature", "0.5", "1")
    rows = {row["temperature"]: row["rates"] for row in found["temperatures"]}
    assert rows == {0.5: rates(win=3, lose=1), 1: rates(win=2, tie=1, lose=1)} and found["rates"] == rows[0.5]

def test_the_limit_takes_the_first_pairs_at_every_temperature(run, serve, capsys):
    """Two pairs at each of two temperatures are eight questions."""
    there = serve(fair)
    found = ask(run, there, "--judge_limit", "2", "--temperature", "1", "0.5")
    assert {shown(t)[0] for t in there.texts} == set(PROMPTS[:2]) and len(there.texts) == 8
    assert [row["pairs"] for row in found["temperatures"]] == [2, 2] and "4 pairs in both orders" in capsys.readouterr().out

# ---------------------------------------------------------------------------------------------------------------------
# what is known, and what it costs

def test_what_is_known_is_counted_and_only_the_rest_is_asked_and_paid(run, serve, capsys):
    """Another judge's answers, and those about a text that has changed since, are not this question's."""
    there = serve(fair)
    ask(run, there, "--judge_limit", "2")
    capsys.readouterr()
    ask(run, there, "--judge_price", "1000", "20000", "--judge_max_tokens", "60")
    rest = there.texts[4:]
    assert {shown(t)[0] for t in rest} == set(PROMPTS[2:])
    tokens = sum(map(len, rest)) // 4    # dollars: 1,000 a million in, 20,000 out
    want = f"4 answers are there, 4 questions to ask default, about {tokens:,} tokens in and 240 out, at most 240, about " \
           f"${tokens / 1000 + 240 / 50:.2f}, at most ${tokens / 1000 + 240 / 50:.2f}"
    assert want in capsys.readouterr().out
    ask(run, there, "--judge_price", "1000", "20000", "--judge_model", "another")
    assert len(there.asked) == 8 + 8 and {b["model"] for b in there.asked[8:]} == {"another"}
    tokens = sum(map(len, there.texts[8:])) // 4
    assert f"{tokens:,} tokens in and 800 out, at most 16,384, about ${tokens / 1000 + 16:.2f}, at most ${tokens / 1000 + 327.68:.2f}" \
        in capsys.readouterr().out
    found = json.loads((run / "eval.json").read_text())
    found["samples"][0]["after"] = "one, said otherwise *****"
    (run / "eval.json").write_text(json.dumps(found))
    ask(run, there)
    assert len(there.asked) == 18 and {shown(t)[0] for t in there.texts[16:]} == {PROMPTS[0]}

def test_an_answer_that_was_kept_empty_or_cut_is_asked_again(run, serve, capsys):
    """Files of an earlier version may have some; they would be invalid for ever."""
    there = serve(fair)
    ask(run, there)
    path = run / "judge.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, answer in zip(lines, ("", " \n", "<think>\nA is better: A", "Unreadable.")):
        line["answer"] = answer
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ask(run, there)
    assert len(there.asked) == 8 + 3 and len(path.read_text().splitlines()) == 11

# ---------------------------------------------------------------------------------------------------------------------
# verdicts

@pytest.mark.parametrize("answer, verdict", [
    ("**Better: A**", "A"), ("**Better:** B", "B"), ("**Better**: **B**", "B"), ("### Better: A", "A"), ("Better: Answer B.", "B"),
    ("Better: [[A]]", "A"), ("Better: (B)", "B"), ("Better: <answer A>", "A"), ("Verdict: A", "A"), ("My verdict is: Better: B", "B"),
    (r"$\boxed{\text{Better: A}}$", "A"), (r"Better: \boxed{B}", "B"), ("The better summary is A.", "A"), ("Better:\n\n**B**", "B"),
    ("| Better: A |", "A"), ("Better: A, not B", "A"), ("Better: A because it is right", "A"), ("Better: Tie.", "neither"),
    ("Better: neither of the two", "neither")])
def test_verdicts_that_models_write(answer, verdict):
    """Bold, brackets, boxes and headings are how models write the line that they were asked for."""
    assert judge.read_verdict(answer) == verdict

@pytest.mark.parametrize("answer", ["better: a full reply", "Better: A full reply would help.", "Better: b", "Better: A or B",
                                    "Better: A/B", "Better: A's tone", "Better: Another one", "Which is better:\n\nA: long\nB: short"])
def test_an_article_is_no_vote(answer):
    """"better: a short answer" is about something that was not said; read as a vote, it always goes to A."""
    assert judge.read_verdict(answer) is None

def test_the_last_verdict_line_counts():
    """A model that reconsiders, or that quotes the form of a verdict first, has its last word at the end."""
    assert judge.read_verdict("Better: A\nOn reflection, B is right where A is not.\nBetter: B") == "B"
    assert judge.read_verdict("What is better: a reply with a reason.\nBetter: B\n\nB has one.") == "B"
    assert judge.read_verdict("Better: B\nor rather\nBetter: neither") == "neither"

def test_thinking_is_left_out():
    """A reasoning model weighs both answers first; what it thought last is not what it said."""
    assert judge.read_verdict("<think>\nBetter: A. No:\nBetter: B\n</think>\n\nBoth are short.\n\nBetter: A") == "A"
    assert judge.read_verdict("So Better: A.\n</think>\nThey are equal.\nBetter: neither") == "neither"
    assert judge.read_verdict("<think>Better: A</think>\nHard to say.") is None
    assert judge.read_verdict("<thinking>\nBetter: A\n") is None

# ---------------------------------------------------------------------------------------------------------------------
# endpoints that do not answer

CUT = "<think>\nLet me look at both answers in turn. The first one"

@pytest.mark.parametrize("said", [{"content": ""}, {"content": None, "reasoning_content": "at length"}, {"content": CUT},
                                  {"content": "Better: A", "finish": "length"}, {"error": "upstream down"}])
def test_an_empty_or_cut_answer_is_a_failure_that_is_asked_again(run, serve, said, capsys):
    """Kept, it would be invalid for ever; a judge cut in its thoughts has said nothing yet."""
    with pytest.raises(SystemExit) as e:
        ask(run, serve(lambda text, body: said if "one" in shown(text)[0] else fair(text)))
    assert "2 questions got no answer" in str(e.value.code) and "\n" not in str(e.value.code)
    assert len((run / "judge.jsonl").read_text().splitlines()) == 6
    stored = json.loads((run / "judge.json").read_text())
    assert stored["pairs"] == 3 and stored["unanswered"] == 2 and stored["rates"] == rates(win=1, tie=1, lose=1)
    there = serve(fair)
    assert ask(run, there)["rates"] == rates(win=2, tie=1, lose=1) and len(there.asked) == 2

def test_without_one_answer_the_file_holds_null(run, serve, capsys):
    """NaN is no JSON: other readers of the file stop at it. After eight failures in a row no more is paid for."""
    there = serve(lambda text, body: {"content": None, "finish": "length"})
    with pytest.raises(SystemExit, match="more --judge_max_tokens"):
        ask(run, there, "--temperature", "1", "0.5", "--judge_workers", "1")
    assert len(there.asked) == endpoint.GIVE_UP == 8
    def refuse(name):
        raise AssertionError(name)
    stored = json.loads((run / "judge.json").read_text(), parse_constant=refuse)
    assert stored["rates"] == {k: [None, 0.0, 1.0] for k in ("win", "tie", "lose", "flip", "invalid")} and stored["pairs"] == 0

def test_files_hold_null_for_what_is_not_finite(tmp_path):
    """eval.json is written by the same function, and a measure may be NaN at any depth."""
    checkpoint.write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": ({"c": math.inf}, "NaN"), "d": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [{"c": None}, "NaN"], "d": 1}

def test_most_answers_without_a_verdict_are_an_error(run, serve):
    """A model that does not follow the form gives a table of zeros, which a script would take for a result."""
    with pytest.raises(SystemExit) as e:
        ask(run, serve(lambda text, body: fair(text) if "one" in shown(text)[0] else "I like both."))
    assert "6 of 8 answers have no verdict" in str(e.value.code) and "\n" not in str(e.value.code)
    assert json.loads((run / "judge.json").read_text())["rates"] == rates(win=1, invalid=3)

@pytest.mark.parametrize("refused, sent", [(("max_tokens",), {"max_completion_tokens": 77, "temperature": 0}),
                                           (("temperature",), {"max_tokens": 77}),
                                           (("max_tokens", "max_completion_tokens", "temperature"), {})])
def test_an_option_that_is_refused_is_not_sent_again(run, serve, refused, sent, capsys):
    """Reasoning models take max_completion_tokens and no temperature; asked the old way, each question would cost a 400."""
    def say(text, body):
        name = next((name for name in refused if name in body), None)
        return {"status": 400, "error": f"Unsupported parameter: '{name}' is not supported."} if name else fair(text)
    there = serve(say)
    assert ask(run, there, "--judge_max_tokens", "77")["rates"] == rates(win=2, tie=1, lose=1)
    options = [{k: v for k, v in body.items() if k not in ("messages", "model")} for body in there.asked]
    assert options[len(refused):] == [sent] * 8 and capsys.readouterr().err.count("the endpoint refuses") == len(refused)

def test_a_question_that_times_out_is_told_and_not_repeated(run, serve, capsys):
    """A slow endpoint asked again has two questions to answer; the rest is asked all the same."""
    there = serve(lambda text, body: {"content": fair(text), "seconds": 60 * ("two" in shown(text)[0])})
    begin = time.monotonic()
    with pytest.raises(SystemExit, match=r"2 questions got no answer \(2 times: no answer in 1.5 s: allow more --judge_timeout"):
        ask(run, there, "--judge_timeout", "1.5")
    assert time.monotonic() - begin < 30 and len(there.asked) == 8
    said = capsys.readouterr()
    assert "each waits 1.5 s at most" in said.out and "pair 2, swapped: no answer in 1.5 s" in said.err
    assert "the first answer took" in said.err and json.loads((run / "judge.json").read_text())["pairs"] == 3

def test_retries_are_within_the_timeout(run, serve):
    """A timeout for each retry lets a question take seven times as long; six retries alone wait for at least 17 s."""
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="no answer in 0.3 s"):
        ask(run, serve(lambda text, body: {"status": 500, "error": "down"}), "--judge_limit", "1", "--judge_timeout", "0.3")
    assert time.monotonic() - begin < 15

def test_no_endpoint_is_one_line_at_once(run, serve, capsys):
    """Six retries of every question would be minutes."""
    there = serve(fair)
    there.http.shutdown()
    there.http.server_close()
    begin = time.monotonic()
    with pytest.raises(SystemExit) as e:
        ask(run, there)
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count("\n") == 1 and "no endpoint there" in error and time.monotonic() - begin < 15
    with pytest.raises(SystemExit):
        judge.main(["--run", str(run), "--judge_url", "localhost:8080/v1"])    # without http://
    assert "no endpoint there" in capsys.readouterr().err and not (run / "judge.json").exists()

@pytest.mark.slow
def test_an_interrupted_run_says_how_it_goes_on(run, serve):
    """In the midst of a question that takes a minute: answers are kept, no traceback, and no wait for the threads."""
    there = serve(lambda text, body: {"content": fair(text), "seconds": 60 * ("four" in shown(text)[0])})
    command = ["judge.py", "--run", str(run), "--judge_url", there.url]
    root = Path(__file__).resolve().parents[1]
    child = subprocess.Popen([sys.executable, *command], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=os.environ, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    while len(there.asked) < 8:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, error = child.communicate(timeout=50)
    assert child.returncode == 130 and time.monotonic() - begin < 45 and "Traceback" not in error    # an answer takes 60 s
    last = error.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("interrupted") and "python " + " ".join(command) in last
    assert len((run / "judge.jsonl").read_text().splitlines()) == 6
