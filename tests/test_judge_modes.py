"""
Every mode of the judge, against endpoints with known verdicts: the questions asked, and rates equal to counts by
hand.
"""
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from judges import Endpoint, shown
from support import checkpoint, endpoint
import judge

pytest.importorskip("openai")

# ---------------------------------------------------------------------------------------------------------------------
# endpoints

@pytest.fixture
def serve():
    there = []
    def start(say):
        there.append(Endpoint(say))
        return there[-1]
    yield start
    for e in there:
        e.close()

# ---------------------------------------------------------------------------------------------------------------------
# samples and judges

# The fair judge prefers the answer with more stars. Its verdicts on the run:
#     temperature 1    against before: win, win, lose, tie
#     temperature 1    against chosen: lose, win, tie, lose
#     temperature 0.5  against before: lose, win, win, win
AFTER = ["one **", "two words ***", "three *", "four *"]
COLD = ["cold one", "cold two *****", "cold three ***", "cold four **"]
BEFORE = ["one b *", "b two of three **", "b three **", "b four *"]
CHOSEN = ["c one ***", "c two *", "c three *", "c four **"]
PROMPTS = ["How is one?", "How is two?", "How is three?", "How is four?"]

@pytest.fixture
def run(tmp_path):
    rows = zip(PROMPTS, BEFORE, AFTER, CHOSEN)
    samples = [{"prompt": f" {p}\n", "before": b, "after": a, "chosen": c} for p, b, a, c in rows]
    found = {"temperature": 1, "samples": samples, "temperatures": [{"temperature": 0.5, "samples": COLD}]}
    (tmp_path / "eval.json").write_text(json.dumps(found))
    return tmp_path

def fair(text, body=None):
    a, b = (answer.count("*") for answer in shown(text)[1:])
    return "Stars decide.\nBetter: " + ("A" if a > b else "B" if b > a else "neither")

def contrary(text, body=None):
    swapped = {"Better: A": "Better: B", "Better: B": "Better: A"}
    reason, verdict = fair(text).split("\n")
    return f"{reason}\n{swapped.get(verdict, verdict)}"

def always_a(text, body=None):
    return "Better: A"

def ask(run, there, *more):
    return judge.main(["--run", str(run), "--judge_url", there.url, *more])

def interval(k, n):
    """Wilson's interval: all p with |p - k / n| <= 1.96 sqrt(p (1 - p) / n), by bisection from k / n to either side."""
    def end(p, outside):
        for _ in range(60):
            middle = (p + outside) / 2
            inside = abs(middle - k / n) <= 1.96 * math.sqrt(middle * (1 - middle) / n)
            p, outside = (middle, outside) if inside else (p, middle)
        return p
    return [k / n, end(k / n, 0.0), end(k / n, 1.0)]

def rates(**counts):
    """
    The "rates" of counts by hand. n is the number of pairs with a valid outcome; only invalid is a share of all
    pairs.
    """
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
    """
    A is the run's sample at that temperature in one order, B in the other. With a wrong text the rate looks just as
    good.
    """
    there = serve(fair)
    ask(run, there, *more)
    want = set()
    for prompt, a, b in zip(PROMPTS, mine, theirs):
        want |= {(prompt, a, b), (prompt, b, a)}
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
    """With the direction reversed, or the order ignored, the counts would differ."""
    found = ask(run, serve(fair), *more)
    n = counts["win"] + counts["lose"]
    assert found["rates"] == rates(**counts) and found["pairs"] == 4 and found["unanswered"] == 0
    assert found["words"] == {"winners": pytest.approx(words[0] / n), "losers": pytest.approx(words[1] / n)}
    assert found["against"] == ("chosen" if "chosen" in more else "before") and found["judge"] == "default"
    assert json.loads((run / "judge.json").read_text()) == found

def test_a_contrary_judge_turns_wins_and_losses(run, serve):
    """This judge calls each win of the fair judge a loss. Ties stay, and a consistent judge has no flips."""
    assert ask(run, serve(contrary))["rates"] == rates(win=1, tie=1, lose=2)

def test_a_judge_that_always_says_a_only_flips(run, serve):
    """
    Its verdict depends on the order only: every pair is a flip, counts as a tie, and has no winner whose words to
    count.
    """
    found = ask(run, serve(always_a))
    assert found["rates"] == rates(tie=4, flip=4) and found["words"] == {}

def test_a_flip_is_a_tie_and_an_invalid_pair_leaves_the_others(run, serve):
    """By hand: pair 1 flips, 2 wins, 3 has one unreadable verdict, 4 ties. n is 3, and 4 for the invalid rate."""
    def say(text, body):
        prompt, a, _ = shown(text)
        if "one" in prompt:
            return "Better: B"
        return "Hard to say." if "three" in prompt and a == BEFORE[2] else fair(text)
    assert ask(run, serve(say))["rates"] == rates(win=1, tie=2, flip=1, invalid=1)

def test_a_vote_for_one_and_neither_is_a_tie_without_a_flip(run, serve):
    """It is no win: half of the evidence says that the answers are equal."""
    found = ask(run, serve(lambda text, body: fair(text) if shown(text)[1] in AFTER else "Better: neither"))
    assert found["rates"] == rates(tie=4)

def test_every_temperature_has_its_own_counts(run, serve, capsys):
    """Each row counts its own samples, and the rates of the file are those of the first temperature asked for."""
    found = ask(run, serve(fair), "--temperature", "0.5", "1")
    rows = {row["temperature"]: row["rates"] for row in found["temperatures"]}
    assert rows == {0.5: rates(win=3, lose=1), 1: rates(win=2, tie=1, lose=1)} and found["rates"] == rows[0.5]

def test_the_limit_takes_the_first_pairs_at_every_temperature(run, serve, capsys):
    """Two pairs at each of two temperatures are eight questions."""
    there = serve(fair)
    found = ask(run, there, "--judge_limit", "2", "--temperature", "1", "0.5")
    assert {shown(t)[0] for t in there.texts} == set(PROMPTS[:2]) and len(there.texts) == 8
    assert [row["pairs"] for row in found["temperatures"]] == [2, 2]
    assert "4 pairs in both orders" in capsys.readouterr().out

# ---------------------------------------------------------------------------------------------------------------------
# what is known, and what it costs

def test_what_is_known_is_counted_and_only_the_rest_is_asked_and_paid(run, serve, capsys):
    """Answers of another judge, or about a text that has changed since, do not answer this question."""
    there = serve(fair)
    ask(run, there, "--judge_limit", "2")
    capsys.readouterr()
    ask(run, there, "--judge_price", "1000", "20000", "--judge_max_tokens", "60")
    rest = there.texts[4:]
    assert {shown(t)[0] for t in rest} == set(PROMPTS[2:])
    tokens = sum(map(len, rest)) // 4    # dollars: 1,000 a million in, 20,000 out
    dollars = f"${tokens / 1000 + 240 / 50:.2f}"
    want = f"4 answers are there, 4 questions to ask default, about {tokens:,} tokens in and 240 out, at most 240, " \
           f"about {dollars}, at most {dollars}"
    assert want in capsys.readouterr().out
    ask(run, there, "--judge_price", "1000", "20000", "--judge_model", "another")
    assert len(there.asked) == 8 + 8 and {b["model"] for b in there.asked[8:]} == {"another"}
    tokens = sum(map(len, there.texts[8:])) // 4
    about, at_most = f"${tokens / 1000 + 16:.2f}", f"${tokens / 1000 + 327.68:.2f}"
    want = f"{tokens:,} tokens in and 800 out, at most 16,384, about {about}, at most {at_most}"
    assert want in capsys.readouterr().out
    found = json.loads((run / "eval.json").read_text())
    found["samples"][0]["after"] = "one, said otherwise *****"
    (run / "eval.json").write_text(json.dumps(found))
    ask(run, there)
    assert len(there.asked) == 18 and {shown(t)[0] for t in there.texts[16:]} == {PROMPTS[0]}

def test_an_answer_that_was_kept_empty_or_cut_is_asked_again(run, serve, capsys):
    """Files of an earlier version may hold such answers, which would stay invalid for ever."""
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
    ("**Better: A**", "A"),
    ("**Better:** B", "B"),
    ("**Better**: **B**", "B"),
    ("### Better: A", "A"),
    ("Better: Answer B.", "B"),
    ("Better: [[A]]", "A"),
    ("Better: (B)", "B"),
    ("Better: <answer A>", "A"),
    ("Verdict: A", "A"),
    ("My verdict is: Better: B", "B"),
    (r"$\boxed{\text{Better: A}}$", "A"),
    (r"Better: \boxed{B}", "B"),
    ("The better summary is A.", "A"),
    ("Better:\n\n**B**", "B"),
    ("| Better: A |", "A"),
    ("Better: A, not B", "A"),
    ("Better: A because it is right", "A"),
    ("Better: Tie.", "neither"),
    ("Better: neither of the two", "neither"),
])
def test_verdicts_that_models_write(answer, verdict):
    """Models write the verdict line in bold, in brackets, in a box or as a heading."""
    assert judge.read_verdict(answer) == verdict

@pytest.mark.parametrize("answer", [
    "better: a full reply", "Better: A full reply would help.", "Better: b", "Better: A or B", "Better: A/B",
    "Better: A's tone", "Better: Another one", "Which is better:\n\nA: long\nB: short"])
def test_an_article_is_no_vote(answer):
    """In "better: a short answer" the letter is an article. Read as a vote, it always goes to A."""
    assert judge.read_verdict(answer) is None

def test_the_last_verdict_line_counts():
    """A model may reconsider, or quote the form of a verdict first. Its decision is the last line."""
    assert judge.read_verdict("Better: A\nOn reflection, B is right where A is not.\nBetter: B") == "B"
    assert judge.read_verdict("What is better: a reply with a reason.\nBetter: B\n\nB has one.") == "B"
    assert judge.read_verdict("Better: B\nor rather\nBetter: neither") == "neither"

def test_thinking_is_left_out():
    """A reasoning model weighs both answers first. The last verdict inside its thoughts is not its answer."""
    assert judge.read_verdict("<think>\nBetter: A. No:\nBetter: B\n</think>\n\nBoth are short.\n\nBetter: A") == "A"
    assert judge.read_verdict("So Better: A.\n</think>\nThey are equal.\nBetter: neither") == "neither"
    assert judge.read_verdict("<think>Better: A</think>\nHard to say.") is None
    assert judge.read_verdict("<thinking>\nBetter: A\n") is None

# ---------------------------------------------------------------------------------------------------------------------
# endpoints that do not answer

CUT = "<think>\nLet me look at both answers in turn. The first one"

@pytest.mark.parametrize("said", [
    {"content": ""},
    {"content": None, "reasoning_content": "at length"},
    {"content": CUT},
    {"content": "Better: A", "finish": "length"},
    {"error": "upstream down"},
])
def test_an_empty_or_cut_answer_is_a_failure_that_is_asked_again(run, serve, said, capsys):
    """
    If it were stored, it would be invalid for ever. A judge that was cut off in its thoughts has given no verdict
    yet.
    """
    with pytest.raises(SystemExit) as e:
        ask(run, serve(lambda text, body: said if "one" in shown(text)[0] else fair(text)))
    assert "2 questions got no answer" in str(e.value.code) and "\n" not in str(e.value.code)
    assert len((run / "judge.jsonl").read_text().splitlines()) == 6
    stored = json.loads((run / "judge.json").read_text())
    assert stored["pairs"] == 3 and stored["unanswered"] == 2 and stored["rates"] == rates(win=1, tie=1, lose=1)
    there = serve(fair)
    assert ask(run, there)["rates"] == rates(win=2, tie=1, lose=1) and len(there.asked) == 2

def test_without_one_answer_the_file_holds_null(run, serve, capsys):
    """
    NaN is not valid JSON, and other readers of the file stop at it. After eight failures in a row no question is
    asked.
    """
    there = serve(lambda text, body: {"content": None, "finish": "length"})
    with pytest.raises(SystemExit, match="more --judge_max_tokens"):
        ask(run, there, "--temperature", "1", "0.5", "--judge_workers", "1")
    assert len(there.asked) == endpoint.GIVE_UP == 8
    def refuse(name):
        raise AssertionError(name)
    stored = json.loads((run / "judge.json").read_text(), parse_constant=refuse)
    assert stored["rates"] == {k: [None, 0.0, 1.0] for k in ("win", "tie", "lose", "flip", "invalid")}
    assert stored["pairs"] == 0

def test_files_hold_null_for_what_is_not_finite(tmp_path):
    """The same function writes eval.json, where a measure may be NaN at any depth."""
    checkpoint.write_json(tmp_path / "x.json", {"a": [math.nan, 1.5], "b": ({"c": math.inf}, "NaN"), "d": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": [{"c": None}, "NaN"], "d": 1}

def test_most_answers_without_a_verdict_are_an_error(run, serve):
    """A model that ignores the form gives a table of zeros, which a script would take for a result."""
    with pytest.raises(SystemExit) as e:
        ask(run, serve(lambda text, body: fair(text) if "one" in shown(text)[0] else "I like both."))
    assert "6 of 8 answers have no verdict" in str(e.value.code) and "\n" not in str(e.value.code)
    assert json.loads((run / "judge.json").read_text())["rates"] == rates(win=1, invalid=3)

@pytest.mark.parametrize("refused, sent", [
    (("max_tokens",), {"max_completion_tokens": 77, "temperature": 0}),
    (("temperature",), {"max_tokens": 77}),
    (("max_tokens", "max_completion_tokens", "temperature"), {})])
def test_an_option_that_is_refused_is_not_sent_again(run, serve, refused, sent, capsys):
    """
    Reasoning models take max_completion_tokens and no temperature. Sent again, a refused option costs each question
    a 400.
    """
    def say(text, body):
        name = next((name for name in refused if name in body), None)
        return {"status": 400, "error": f"Unsupported parameter: '{name}' is not supported."} if name else fair(text)
    there = serve(say)
    assert ask(run, there, "--judge_max_tokens", "77")["rates"] == rates(win=2, tie=1, lose=1)
    options = [{k: v for k, v in body.items() if k not in ("messages", "model")} for body in there.asked]
    assert options[len(refused):] == [sent] * 8
    assert capsys.readouterr().err.count("the endpoint refuses") == len(refused)

def test_a_question_that_times_out_is_told_and_not_repeated(run, serve, capsys):
    """A slow endpoint that is asked again has two questions to answer. The other questions are still asked."""
    there = serve(lambda text, body: {"content": fair(text), "seconds": 60 * ("two" in shown(text)[0])})
    begin = time.monotonic()
    told = r"2 questions got no answer \(2 times: no answer in 1.5 s: allow more --judge_timeout"
    with pytest.raises(SystemExit, match=told):
        ask(run, there, "--judge_timeout", "1.5")
    assert time.monotonic() - begin < 30 and len(there.asked) == 8
    said = capsys.readouterr()
    assert "each waits 1.5 s at most" in said.out and "pair 2, swapped: no answer in 1.5 s" in said.err
    assert "the first answer took" in said.err and json.loads((run / "judge.json").read_text())["pairs"] == 3

def test_retries_are_within_the_timeout(run, serve):
    """
    With one timeout per retry a question takes seven times as long. The waits between six retries alone take 17 s.
    """
    there = serve(lambda text, body: {"status": 500, "error": "down"})
    begin = time.monotonic()
    with pytest.raises(SystemExit, match="no answer in 0.3 s"):
        ask(run, there, "--judge_limit", "1", "--judge_timeout", "0.3")
    assert time.monotonic() - begin < 15

def test_no_endpoint_is_one_line_at_once(run, serve, capsys):
    """Six retries of every question would take minutes."""
    there = serve(fair)
    there.http.shutdown()
    there.http.server_close()
    begin = time.monotonic()
    with pytest.raises(SystemExit) as e:
        ask(run, there)
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.count("\n") == 1 and "no endpoint there" in error
    assert time.monotonic() - begin < 15
    with pytest.raises(SystemExit):
        judge.main(["--run", str(run), "--judge_url", "localhost:8080/v1"])    # without http://
    assert "no endpoint there" in capsys.readouterr().err and not (run / "judge.json").exists()

@pytest.mark.slow
def test_an_interrupted_run_says_how_it_goes_on(run, serve):
    """
    Stopped during a question that takes a minute: answers are kept, no traceback is printed, no thread is waited
    for.
    """
    there = serve(lambda text, body: {"content": fair(text), "seconds": 60 * ("four" in shown(text)[0])})
    command = ["judge.py", "--run", str(run), "--judge_url", there.url]
    child = subprocess.Popen([sys.executable, *command], cwd=Path(__file__).resolve().parents[1], env=os.environ,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    while len(there.asked) < 8:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, error = child.communicate(timeout=50)
    assert child.returncode == 130 and "Traceback" not in error
    assert time.monotonic() - begin < 45    # an answer takes 60 s
    last = error.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("interrupted") and "python " + " ".join(command) in last
    assert len((run / "judge.jsonl").read_text().splitlines()) == 6
