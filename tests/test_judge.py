"""The judge against a local server that behaves as real ones do: slow answers, 429, 500, cut connections, rambling."""
import json
import math
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from support import endpoint
import judge

pytest.importorskip("openai")

class Server:
    """An endpoint in this process. behave(text, times asked) gives an answer, or (status, headers), or "cut"."""
    def __init__(self, behave):
        self.asked, self.keys, self.at_once, self.most = Counter(), set(), 0, 0
        lock, server = threading.Lock(), self
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][0]["content"]
                with lock:
                    server.asked[text] += 1
                    server.keys.add(self.headers.get("Authorization"))
                    server.at_once += 1
                    server.most, n = max(server.most, server.at_once), server.asked[text]
                said = behave(text, n)
                with lock:
                    server.at_once -= 1
                if said == "cut":
                    self.connection.close()
                    return
                status, headers = said if isinstance(said, tuple) else (200, {})
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
                reply = {}
                if status == 200:
                    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                reply = json.dumps(reply).encode()
                self.send_response(status)
                headers = {"Content-Length": str(len(reply)), "Content-Type": "application/json"} | headers
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=lambda: self.http.serve_forever(0.02), daemon=True).start()

@pytest.fixture
def serve():
    servers = []
    def start(behave):
        servers.append(Server(behave))
        return servers[-1]
    yield start
    for s in servers:
        s.http.shutdown()
        s.http.server_close()

@pytest.fixture
def run(tmp_path):
    """Ten samples: the run's answer is the longer one in six, the shorter one in three, and equal in one."""
    better, worse = "a good long answer", "no"
    samples = [{"prompt": f"question {i}?", "after": better, "before": worse} for i in range(6)]
    samples += [{"prompt": f"question {i}?", "after": worse, "before": better} for i in range(6, 9)]
    samples += [{"prompt": "question 9?", "after": worse, "before": worse}]
    (tmp_path / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    return tmp_path

def answers(text):
    """(answer A, answer B) of a question."""
    part = lambda name: text.split(f"<answer {name}>\n")[1].split(f"\n</answer {name}>")[0]
    return part("A"), part("B")

def honest(text, n=1):
    a, b = map(len, answers(text))
    return "They differ in detail.\n\nBetter: " + ("A" if a > b else "B" if b > a else "neither")

def ask(run, server, *more):
    return judge.main(["--run", str(run), "--judge_url", server.url, *more])

# ---------------------------------------------------------------------------------------------------------------------
# reading verdicts, counting

@pytest.mark.parametrize("answer, verdict", [
    ("Better: A", "A"),
    ("A is shorter.\nBetter: B\n", "B"),
    ("**Better: B**", "B"),
    ("better:  neither", "neither"),
    ("Better: tie", "neither"),
    ("The better is A, since B is wrong.", "A"),
    ("Better: Answer B.", "B"),
    ("Better: B\n\nB has more detail than A.", "B"),
    ('Verdict:\n"Better: A"', "A"),
    ("Better: A ... on reflection, Better: B", None),
    ("Both are good.", None),
    ("", None),
    ("A is a better answer", None),
    ("Better: Another answer would be", None),
])
def test_verdicts_are_read(answer, verdict):
    """
    A verdict may stand first or last, in bold, or among other words. With two different verdicts, or none, nothing
    is guessed.
    """
    assert judge.read_verdict(answer) == verdict

def test_outcomes_by_hand():
    """
    The run's answer is A when asked first and B when asked second. A judge that says A both times prefers the first
    place.
    """
    assert judge.outcome("A", "B") == "win" and judge.outcome("B", "A") == "lose"
    assert judge.outcome("A", "A") == "flip" and judge.outcome("B", "B") == "flip"
    assert judge.outcome("neither", "neither") == "tie" and judge.outcome("A", "neither") == "tie"
    assert judge.outcome(None, "B") == judge.outcome("A", None) == "invalid"

def test_wilson_by_hand():
    """8 of 10 give 0.490 to 0.943 (Wilson 1927). At 0 of n Wilson's interval has a width, while Wald's has none."""
    assert judge.wilson(8, 10) == pytest.approx([0.8, 0.490, 0.943], abs=1e-3)
    share, low, high = judge.wilson(0, 20)
    assert share == 0 == pytest.approx(low) and 0.1 < high < 0.2 and math.isnan(judge.wilson(0, 0)[0])

# ---------------------------------------------------------------------------------------------------------------------
# asking

def test_a_fair_judge(run, serve, capsys):
    """
    Every pair is asked in both orders, and the pair of equal answers once: 19 questions. Rates and lengths are
    known.
    """
    server = serve(honest)
    found = ask(run, server, "--judge_price", "1", "2")
    assert len(server.asked) == 19 and set(server.asked.values()) == {1}
    assert [found["rates"][k][0] for k in ("win", "tie", "lose", "flip", "invalid")] == [0.6, 0.1, 0.3, 0, 0]
    assert found["words"] == {"winners": 4, "losers": 1} and json.loads((run / "judge.json").read_text()) == found
    out = capsys.readouterr().out
    assert "19 questions to ask" in out and "about $" in out

def test_a_judge_that_prefers_what_stands_first_ties_everything(run, serve):
    """Asked in one order only, this judge would give the run a win rate of 1."""
    found = ask(run, serve(lambda text, n: "Better: A"))
    assert found["rates"]["flip"][0] == found["rates"]["tie"][0] == 1 and found["rates"]["win"][0] == 0

def test_unreadable_verdicts_are_counted_and_not_dropped(run, serve):
    """An unreadable verdict leaves the denominator of the other rates, and its own rate is reported."""
    found = ask(run, serve(lambda text, n: "Hard to say." if "question 3?" in text else honest(text)))
    assert found["pairs"] == 10 and found["rates"]["invalid"][0] == 0.1
    assert found["rates"]["win"][0] == pytest.approx(5 / 9)

def test_a_server_with_bad_days_loses_nothing(run, serve):
    """
    After 429 with Retry-After, 500 or a cut connection the question is asked again. The rates are those of a good
    server.
    """
    def behave(text, n):
        kind = int(text.split("question ")[1][0]) % 5
        if n == 1 and kind == 0:
            return 429, {"Retry-After": "0.2"}
        if n == 1 and kind == 1:
            return 500, {}
        if n == 1 and kind == 2:
            return "cut"
        time.sleep(0.05)
        return honest(text)
    server = serve(behave)
    found = ask(run, server)
    assert found["rates"]["win"][0] == 0.6 and found["unanswered"] == 0
    assert all(n == 1 + (int(text.split("question ")[1][0]) % 5 < 3) for text, n in server.asked.items())

def test_a_run_that_was_interrupted_asks_the_rest_alone(run, serve):
    """Killed in the middle of a line, the run keeps its complete answers, and nobody pays for them twice."""
    ask(run, serve(honest), "--judge_limit", "6")
    path = run / "judge.jsonl"
    path.write_bytes(path.read_bytes()[:-9])    # the last line is cut
    server = serve(honest)
    found = ask(run, server)
    assert len(server.asked) == 19 - 11 and found["rates"]["win"][0] == 0.6
    server = serve(honest)
    ask(run, server)
    assert not server.asked
    ask(run, server, "--judge_model", "another")    # answers of one judge do not count for another
    assert len(server.asked) == 19

def test_a_question_that_never_gets_an_answer_is_told(run, serve, monkeypatch, capsys):
    """The other answers stay. The same command asks the missing ones when the server works again."""
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    with pytest.raises(SystemExit, match="2 questions got no answer"):
        ask(run, serve(lambda text, n: (500, {}) if "question 4?" in text else honest(text)))
    assert json.loads((run / "judge.json").read_text())["pairs"] == 9
    server = serve(honest)
    assert ask(run, server)["pairs"] == 10 and len(server.asked) == 2

def test_as_many_at_a_time_as_asked_for(run, serve):
    """A local model answers one question at a time, a hosted one many."""
    def slow(text, n):
        time.sleep(0.05)
        return honest(text)
    one, four = serve(slow), serve(slow)
    ask(run, one, "--judge_workers", "1")
    (run / "judge.jsonl").unlink()
    ask(run, four, "--judge_workers", "4")
    assert one.most == 1 and 1 < four.most <= 4

def test_the_key_is_sent_and_neither_printed_nor_stored(run, serve, monkeypatch, capsys):
    """The key comes from the environment, and judge.json, judge.jsonl and the screen are often shared."""
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = serve(honest)
    ask(run, server, "--judge_key", "MY_KEY")
    assert server.keys == {"Bearer sk-secret"}
    said = capsys.readouterr()
    assert "sk-secret" not in said.out + said.err + "".join(p.read_text() for p in run.iterdir())

def test_what_cannot_be_judged_is_refused(run, tmp_path, capsys):
    """The message is one line and comes before anything is asked."""
    for more in (["--against", "chosen"], ["--temperature", "0.5"]):
        with pytest.raises(SystemExit):
            judge.main(["--run", str(run), *more])
        assert capsys.readouterr().err.count("\n") == 1
    (run / "judge.jsonl").write_text("{}\n" + json.dumps({"key": "a", "answer": "b"}) + "\n")
    with pytest.raises(SystemExit):
        judge.main(["--run", str(run)])
    assert "judge.jsonl" in capsys.readouterr().err

def test_a_win_rate_for_each_temperature(run, serve, capsys):
    """
    eval.py's samples at each temperature meet the reference's at its first temperature. Equal questions are asked
    once.
    """
    found = json.loads((run / "eval.json").read_text())
    colder = [s["after"] for s in found["samples"][:6]] + ["a good long answer, always"] * 4
    found["temperatures"] = [{"temperature": 0.5, "samples": colder}]
    (run / "eval.json").write_text(json.dumps(found))
    server = serve(honest)
    both = ask(run, server, "--temperature", "1", "0.5")
    assert [(r["temperature"], r["rates"]["win"][0]) for r in both["temperatures"]] == [(1, 0.6), (0.5, 1)]
    assert both["rates"]["win"][0] == 0.6
    assert len(server.asked) == 19 + 8 and set(server.asked.values()) == {1}
    lines = capsys.readouterr().out.splitlines()
    assert "20 pairs" in lines[0] and [line.split()[:2] for line in lines[2:4]] == [["1", "0.600"], ["0.5", "1.000"]]
    assert ask(run, server, "--temperature", "0.5")["rates"]["win"][0] == 1
    with pytest.raises(SystemExit):
        judge.main(["--run", str(run), "--temperature", "0.5", "0.7"])
    assert "no samples at temperature 0.7" in capsys.readouterr().err

@pytest.mark.parametrize("content", ["{}", "[]", '{"samples": []}', '{"temperature": 1, "samples": []}',
                                     '{"temperature": 1, "samples": [{"text": "a"}]}'])
def test_a_file_that_is_no_evaluation_is_refused(run, content, capsys):
    """An eval.json of another tool, or a truncated one, once ended in a KeyError."""
    (run / "eval.json").write_text(content)
    with pytest.raises(SystemExit) as end:
        judge.main(["--run", str(run)])
    assert end.value.code == 2 and "run eval.py again" in capsys.readouterr().err
