"""Verdicts of one letter: soft votes from log-probs, endpoints without them, and judges that cannot be read at all."""
import json
import math

import pytest

from judges import serving, shown, soft
from support.verdict import first_letter, soft_vote
import judge
import judges
import measures

pytest.importorskip("openai")

AFTER = ["one **", "two words ***", "three *", "four *"]
BEFORE = ["one b *", "two b **", "b three **", "four b ***"]

@pytest.fixture
def run(tmp_path):
    rows = zip(["How is one?", "How is two?", "How is three?", "How is four?"], BEFORE, AFTER)
    samples = [{"prompt": p, "before": b, "after": a} for p, b, a in rows]
    (tmp_path / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    return tmp_path

def stars(text, body=None):
    """The letter of the answer with more stars."""
    a, b = (answer.count("*") for answer in shown(text)[1:])
    return "A" if a > b else "B"

def ask(run, there, *more):
    return judge.main(["--run", str(run), "--judge_url", there.url, "--verdict", "choice", *more])

# ---------------------------------------------------------------------------------------------------------------------
# one vote

def test_a_soft_vote_by_hand():
    """
    P(A) = 0.3 and P(B) = 0.1: the vote is 0.3 / (0.3 + 0.1) = 0.75. Without the division a judge that puts most of its
    probability on other words would never prefer an answer.
    """
    log = math.log
    assert soft_vote({"The": log(0.6), "A": log(0.3), "B": log(0.1)}) == pytest.approx(0.75)
    assert soft_vote({"A": log(0.2), " A": log(0.05), "**A": log(0.05), "B": log(0.1)}) == pytest.approx(0.75)
    assert soft_vote({"B": log(0.01), "The": log(0.99)}) == 0 and soft_vote({"(A": log(0.01)}) == 1

@pytest.mark.parametrize("tokens", [{}, {"The": -0.1}, {"a": -0.1, "b": -3.0}, {"Ab": -1.0, "AB": -1.0, "A B": -1.0},
                                    {"A": -math.inf}])
def test_a_soft_vote_of_other_tokens_is_none(tokens):
    """ "a" begins an article, and "AB" is no choice. Read as votes, they would all go to one side."""
    assert soft_vote(tokens) is None

def test_a_soft_vote_of_tiny_probabilities():
    """exp(-9999), which some endpoints send in place of 0, is 0 in floats: 0 / 0 without the largest taken out."""
    assert soft_vote({"A": -9999.0, "B": -9999.0}) == 0.5
    assert soft_vote({"A": -800.0, "B": -800.0 - math.log(3)}) == pytest.approx(0.75)

@pytest.mark.parametrize("text, letter", [
    ("A", "A"), (" B\n", "B"), ("**A**", "A"), ("[[B]]", "B"), ("A B A B A", "A"), ("Answer B", "B"),
    ("A is better", "A"), ("A good answer", None), ("Both", None), ("A+", None), ("a", None),
    ("The better is A", None)])
def test_the_first_word_is_the_vote_without_log_probs(text, letter):
    """Some servers ignore max_tokens, so the answer may be longer. "A good answer" begins with an article."""
    assert first_letter(text) == letter

def test_an_answer_of_one_letter_is_a_verdict():
    """Also where a reason was asked for: a model that says "B" and nothing else has chosen."""
    for answer, verdict in (("A", "A"), ("**B**.", "B"), ("Answer A", "A"), ("neither", "neither"), ("A B", None),
                            ("<think>A</think>B", "B"), ("a", None)):
        assert judge.read_verdict(answer) == verdict, answer

# ---------------------------------------------------------------------------------------------------------------------
# a run

def test_votes_are_asked_for_and_combined_over_both_orders(run):
    """
    By hand: the judge gives 0.9 to the answer with more stars, in either order. The run has more in 2 of 4 pairs: its
    soft win rate is (2 * 0.9 + 2 * 0.1) / 4 = 0.5, and its hard win rate too.
    """
    with serving(soft(stars)) as there:
        found = ask(run, there)
    assert [found["rates"][k][0] for k in ("win", "tie", "lose", "flip", "invalid")] == [0.5, 0, 0.5, 0, 0]
    assert found["soft"] == pytest.approx(measures.bootstrap([0.9, 0.9, 0.1, 0.1])) and found["logprobs"] == 8
    assert found["verdict"] == "choice" and json.loads((run / "judge.json").read_text()) == found
    for body in there.asked:
        assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0)
    assert all(text.endswith("one letter, A or B, and nothing else.") for text in there.texts)

def test_without_log_probs_the_letter_counts(run, capsys):
    """An endpoint may ignore the option, as older servers do. A vote is then 1 or 0, and the line says so."""
    with serving(stars) as there:
        found = ask(run, there)
    assert found["soft"] == pytest.approx(measures.bootstrap([1, 1, 0, 0])) and found["logprobs"] == 0
    assert "0 of 8 answers came with log-probs" in capsys.readouterr().out
    assert "p" not in json.loads((run / "judge.jsonl").read_text().splitlines()[0])

def test_a_judge_that_leans_to_the_first_flips_by_letters_and_not_by_shares(run):
    """
    It gives the first answer 0.9 if that has more stars, else 0.6. Its letter is always A, so every pair flips.
    The shares still tell the answers apart: (0.9 + 1 - 0.6) / 2 = 0.65 for the run where it is better, else 0.35.
    """
    def leans(text, body):
        p = 0.9 if stars(text) == "A" else 0.6
        return {"content": "A", "logprobs": {"A": math.log(p), "B": math.log(1 - p)}}
    with serving(leans) as there:
        found = ask(run, there)
    assert found["rates"]["flip"][0] == 1 and found["rates"]["win"][0] == 0
    assert found["soft"] == pytest.approx(measures.bootstrap([0.65, 0.65, 0.35, 0.35]))

def test_the_first_token_is_read_and_of_it_all_forms_of_a_letter(run):
    """Where the server ignores max_tokens, later positions hold A and B too. The first one is the vote."""
    token = lambda t, p, top=(): {"token": t, "logprob": math.log(p), "bytes": None, "top_logprobs": list(top)}
    top = [token("The", 0.5), token(" A", 0.1), token("A", 0.2), token("B", 0.1)]
    positions = {"content": [token("The", 0.5, top), token("B", 0.99, [token("B", 0.99), token("A", 0.01)])]}
    with serving(lambda text, body: {"content": "The B", "logprobs": positions}) as there:
        found = ask(run, there, "--judge_limit", "1")
    records = [json.loads(line) for line in (run / "judge.jsonl").read_text().splitlines()]
    assert [(r["answer"], r["p"]) for r in records] == [("A", pytest.approx(0.75))] * 2
    assert found["rates"]["flip"][0] == 1 and found["soft"][0] == pytest.approx(0.5)

def test_answers_of_both_forms_are_kept_apart_and_known_again(run):
    """A verdict with a reason does not answer the question for a letter. Both are asked once."""
    say = lambda text, body=None: soft(stars)(text) if judges.one_letter(text) else judges.said(text, stars(text))
    with serving(say) as there:
        text = judge.main(["--run", str(run), "--judge_url", there.url])
        first = ask(run, there)
        assert len(there.asked) == 16
        assert ask(run, there) == first and judge.main(["--run", str(run), "--judge_url", there.url]) == text
        assert len(there.asked) == 16
    assert "soft" not in text and text["verdict"] == "text" and text["rates"] == first["rates"]

def test_text_questions_have_the_keys_of_earlier_files():
    """A key that changed would make every answer that is already paid for unknown."""
    sample = {"prompt": "Hi?", "after": "one", "before": "two"}
    keys = [q["key"] for q in judge.questions([sample], against="before", task="dialogue", model="m")]
    assert keys == ["d9a330c10fa4bd7ca6c63771", "9f60c8cd9007a714f5f9be91"]

@pytest.mark.parametrize("most, told, sent", [
    (5, ["for 5 log-probs"], {"logprobs": True, "top_logprobs": 5}),
    (0, ["for 5 log-probs", "without log-probs"], {})])
@pytest.mark.parametrize("status, message", [
    (400, "Requested sample logprobs of {n}, which is greater than max allowed: {most}"),
    (422, "body.top_logprobs: must be at most {most}")])
def test_refused_log_probs_are_fewer_and_then_none(run, capsys, most, told, sent, status, message):
    """Limits differ between servers, and some name the other option in their message. Each change is told once."""
    def say(text, body):
        n = body.get("top_logprobs", 0) + ("logprobs" in body)
        refused = {"status": status, "error": message.format(n=n, most=most)}
        return refused if n > most + (most > 0) else soft(stars)(text)
    with serving(say) as there:
        found = ask(run, there)
    options = [{k: v for k, v in body.items() if "logprobs" in k} for body in there.asked]
    assert options[len(told):] == [sent] * 8 and found["rates"]["win"][0] == 0.5
    lines = [line for line in capsys.readouterr().err.splitlines() if "refuses" in line]
    assert len(lines) == len(told) and all(words in line for words, line in zip(told, lines))
    assert found["logprobs"] == (8 if sent else 0)

def test_an_empty_answer_is_a_failure_that_names_the_other_form(run):
    """A reasoning model's first token is a thought, and the answer is empty. Asked again, it would be so again."""
    with serving(lambda text, body: {"content": None, "reasoning_content": "Well"}) as there:
        with pytest.raises(SystemExit, match="8 questions got no answer .*--verdict text"):
            ask(run, there, "--judge_workers", "1")
    assert not (run / "judge.jsonl").exists()

def test_a_soft_vote_that_is_no_probability_is_a_damaged_line(run, capsys):
    """judge.jsonl may be edited, or written by another tool. A probability above 1 would make a win rate above 1."""
    with serving(soft(stars)) as there:
        ask(run, there)
    path = run / "judge.jsonl"
    lines = path.read_text().splitlines()
    for damage in ({"p": 1.5}, {"p": "high"}, {"p": None}, {"answer": None}):
        path.write_text("\n".join([json.dumps(json.loads(lines[0]) | damage), *lines[1:]]) + "\n")
        with pytest.raises(SystemExit) as end:
            ask(run, there)
        assert end.value.code == 2 and "is not an answer; delete it" in capsys.readouterr().err

# ---------------------------------------------------------------------------------------------------------------------
# judges that cannot be read

def test_no_readable_verdict_at_all_is_one_sentence_and_no_row(run, capsys):
    """A row of nan looks like a result. The message has an answer as an example, and what to try in its place."""
    with serving(lambda text, body: "A B A B A B") as there:
        with pytest.raises(SystemExit) as end:
            judge.main(["--run", str(run), "--judge_url", there.url])
    message, out = str(end.value.code), capsys.readouterr().out
    assert "none of the 8 answers has a verdict that can be read, such as 'A B A B A B'" in message
    assert "--verdict choice" in message and "\n" not in message
    assert len(out.splitlines()) == 1 and "nan" not in out and "win" not in out
    assert json.loads((run / "judge.json").read_text())["rates"]["invalid"][0] == 1

def test_no_letter_at_all_is_one_sentence_too(run, capsys):
    """Another token than A and B is unreadable, also with log-probs. --verdict choice is not advised again."""
    with serving(lambda text, body: {"content": "Both", "logprobs": {"Both": -0.1, "I": -3.0}}) as there:
        with pytest.raises(SystemExit) as end:
            ask(run, there)
    message = str(end.value.code)
    assert "none of the 8" in message and "'Both'" in message and "another --judge_model" in message
    assert "--verdict choice" not in message and "probability" not in capsys.readouterr().out
    assert json.loads((run / "judge.json").read_text())["soft"] is None

def test_half_readable_verdicts_without_one_whole_pair_are_an_error(run, capsys):
    """Readable in one order only: no answer is lost by the rule of more than half, and yet no pair has an outcome."""
    say = lambda text, body: judges.said(text, stars(text)) if shown(text)[1] in AFTER else "Hard to say."
    with serving(say) as there:
        with pytest.raises(SystemExit, match="4 of 8 answers .* no pair has two readable verdicts"):
            judge.main(["--run", str(run), "--judge_url", there.url])
    assert len(capsys.readouterr().out.splitlines()) == 1

def test_mostly_unreadable_answers_name_the_other_form(run, capsys):
    """One pair of four is readable: its row is shown, and the status is 1."""
    say = lambda text, body: judges.said(text, stars(text)) if "one" in shown(text)[0] else "Hard to say."
    with serving(say) as there:
        with pytest.raises(SystemExit, match="6 of 8 answers have no verdict .* --verdict choice"):
            judge.main(["--run", str(run), "--judge_url", there.url])
    assert "1.000 [" in capsys.readouterr().out

def test_tokens_of_one_letter_cannot_be_set(run, capsys):
    """More tokens would be paid for and not read."""
    with pytest.raises(SystemExit):
        judge.main(["--run", str(run), "--verdict", "choice", "--judge_max_tokens", "5"])
    assert "--judge_max_tokens has no effect with --verdict choice" in capsys.readouterr().err
