"""The check of a judge: judges with a known bias are seen, an honest one is not accused, and numbers by hand."""
import functools
import json
import random
import shlex

import pytest

from support.verdict import read_verdict
import judge
import judge_check
import measures
import judges
import questions
import toy

def in_twos(values):
    return list(zip(values[::2], values[1::2]))

@functools.cache
def drawn(n, seed):
    return judge_check.toy_pairs(n, seed)

def checked(say, samples, task="sentiment"):
    """The measures of a judge on pairs with a known order, and what they say. Without an endpoint between."""
    asked = questions.questions(samples, against="worse", task=task, model="m")
    found = judge_check.measured(samples, in_twos([read_verdict(say(q["text"])) for q in asked]))
    return found, judge_check.conclusions(found)

def pair(better, worse):
    return {"prompt": "", "after": better, "worse": worse}

# ---------------------------------------------------------------------------------------------------------------------
# numbers by hand

PAIRS = [pair("a b c", "d"), pair("a b c", "d"), pair("a", "b c d"), pair("a", "b c d"), pair("a b", "c d")]

def test_measures_by_hand():
    """
    Verdicts on five pairs, with the better answer as A and as B. Shares of right verdicts: 1, 1/2, 1/2, 3/4, 0. The
    first pair is consistent, the second A twice, the third B twice, the fourth right and undecided, the fifth wrong.
    """
    verdicts = [("A", "B"), ("A", "A"), ("B", "B"), ("A", "neither"), ("B", "A")]
    found = judge_check.measured(PAIRS, verdicts)
    assert found["pairs"] == 5 and found["accuracy"][0] == pytest.approx((1 + 0.5 + 0.5 + 0.75 + 0) / 5)
    assert found["longer"][0] == pytest.approx(0.75) and found["shorter"][0] == pytest.approx(0.625)
    assert (found["pairs_longer"], found["pairs_shorter"]) == (2, 2)    # the fifth pair has answers of one length
    assert found["length"][0] == pytest.approx(0.125)
    assert found["position"][0] == pytest.approx((0.5 + 1 + 0 + 0.75 + 0.5) / 5)    # votes for the first place
    assert found["flip"][0] == pytest.approx(2 / 5) and found["unreadable"][0] == 0 and "soft_accuracy" not in found
    assert found["accuracy"] == judge.wilson(2.75, 5)    # the pair is the unit, not the question

def test_unreadable_answers_are_counted_and_their_pairs_left_out():
    """Dropped in silence, a judge that answers the easy half of the questions would look good."""
    verdicts = [("A", "B"), ("A", None), (None, None), ("A", "B"), ("B", "A")]
    found = judge_check.measured(PAIRS, verdicts)
    assert found["pairs"] == 3 and found["accuracy"][0] == pytest.approx(2 / 3)
    assert found["unreadable"][0] == pytest.approx(3 / 10) and found["pairs_longer"] == found["pairs_shorter"] == 1

def test_soft_votes_by_hand():
    """What the better answer gets is the mean of p and 1 - q: 0.65, 0.35, and 0.5, which counts half."""
    votes = [(0.9, 0.6), (0.6, 0.9), (0.7, 0.7), (None, 0.2), (0.9, None)]
    found = judge_check.measured(PAIRS, [("A", "A")] * 5, votes)
    assert found["soft_accuracy"][0] == pytest.approx(1.5 / 3) and found["accuracy"][0] == 0.5

def test_the_interval_of_a_difference_is_that_of_newcombe():
    """56/70 - 48/80 = 0.2 has the interval 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    found = judge_check.difference(judge.wilson(56, 70), judge.wilson(48, 80))
    assert found == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)
    turned = judge_check.difference(judge.wilson(48, 80), judge.wilson(56, 70))
    assert turned == pytest.approx([-0.2, -0.3339, -0.0524], abs=5e-5)

def test_the_interval_of_a_lean_by_hand():
    """
    3 pairs for the first place, 1 for the second, 6 without a lean: 10 + 2 pairs, with half a pair more on either side:
    mean 2 / 12, variance ((4 + 1) / 12 - (2 / 12)^2) / 12. Equal values have a width too.
    """
    half = 1.96 * ((5 / 12 - (2 / 12) ** 2) / 12) ** 0.5
    found = judge_check.lean([1, 1, 1, -1, *[0] * 6])
    assert found == pytest.approx([0.2, 2 / 12 - half, 2 / 12 + half])
    assert judge_check.lean([0] * 50)[1] < -0.02
    assert judge_check.lean([1] * 50)[1:] == [pytest.approx(0.897, abs=1e-3), 1]

@pytest.mark.parametrize("first, second", [(0.05, 0.05), (0.2, 0.1), (0.5, 0.5), (0.02, 0.0)])
def test_the_interval_of_a_lean_holds_the_truth(first, second):
    """95% of the intervals should, of judges whose pairs flip to either place with these probabilities."""
    rng, held = random.Random(0), 0
    for _ in range(500):
        values = [(u < first) - (1 - second < u) for u in (rng.random() for _ in range(60))]
        _, low, high = judge_check.lean(values)
        held += low <= first - second <= high
    assert held / 500 >= 0.93

# ---------------------------------------------------------------------------------------------------------------------
# judges with a known bias

@pytest.fixture(scope="module")
def pairs():
    return judge_check.toy_pairs(100)

# judge -> accuracy, where the better answer is longer, shorter, share of the first place, flips; words of what is said
KNOWN = {"honest": (1, 1, 1, 0.5, 0, ["no bias was found"]),
         "contrary": (0, 0, 0, 0.5, 0, ["worse than chance"]),
         "first": (0.5, 0.5, 0.5, 1, 1, ["not shown to be better than chance", "prefers the first answer: 100%"]),
         "second": (0.5, 0.5, 0.5, 0, 1, ["not shown to be better than chance", "prefers the second answer: 100%"]),
         "long": (0.5, 1, 0, 0.5, 0, ["not shown to be better", "prefers the longer answer: right in 100%"]),
         "short": (0.5, 0, 1, 0.5, 0, ["not shown to be better", "prefers the shorter answer: right in 0%"])}

@pytest.mark.parametrize("verdict", ["text", "choice"])
@pytest.mark.parametrize("name", KNOWN)
def test_a_bias_has_its_number_and_its_words(pairs, name, verdict):
    """The values are exact: such a judge looks at nothing else, and the pairs are balanced in length."""
    found, said = checked(judges.JUDGES[name], pairs, questions.form("sentiment", verdict))
    *values, words = KNOWN[name]
    shown = [found[key][0] for key in ("accuracy", "longer", "shorter", "position", "flip")]
    assert shown == pytest.approx(values) and found["pairs_longer"] == found["pairs_shorter"] == 50
    assert len(said) == len(words) and all(part in line for part, line in zip(words, said)), said

def test_a_judge_that_counts_words_of_praise_is_good_but_not_perfect(pairs):
    """It does not read "not". On pairs that differ clearly this costs a few percent, and no bias shows."""
    found, said = checked(judges.sentiment, pairs)
    assert 0.9 < found["accuracy"][0] < 1 and said == ["better than chance, and no bias was found"]

def test_chance_is_not_taken_for_skill(pairs):
    """A judge that throws a coin is right in half of the questions, and flips half of the pairs."""
    found, said = checked(judges.chance, pairs)
    assert found["accuracy"][1] < 0.5 < found["accuracy"][2] and 0.35 < found["flip"][0] < 0.65
    assert said == ["not shown to be better than chance: do not trust its win rates"]

# an otherwise honest judge that follows its bias in a portion of the questions -> words that must be said
PARTLY = [("first", 0.2, "prefers the first answer"), ("second", 0.2, "prefers the second answer"),
          ("long", 0.3, "prefers the longer answer"), ("short", 0.3, "prefers the shorter answer")]

@pytest.mark.parametrize("bias, portion, words", PARTLY)
def test_a_bias_in_a_part_of_the_questions_is_seen(bias, portion, words):
    """In each of 8 draws of 100 pairs. One other bias may seem to be there, since an interval of 95% may miss."""
    n_said = 0
    for seed in range(8):
        _, said = checked(judges.mixed(judges.honest, judges.JUDGES[bias], portion), drawn(100, seed))
        assert any(words in line for line in said), (seed, said)
        n_said += len(said)
    assert n_said <= 9

def test_an_honest_judge_is_not_accused():
    """Never without noise. With noise in 3 of 10 questions an interval of 95% misses now and then: 5% for each bias."""
    accused = 0
    for seed in range(20):
        samples = drawn(60, seed)
        assert checked(judges.honest, samples)[1] == ["better than chance, and no bias was found"]
        accused += checked(judges.mixed(judges.honest, judges.chance, 0.3), samples)[1] != [
            "better than chance, and no bias was found"]
    assert accused <= 4

@pytest.mark.slow
def test_how_often_a_fair_judge_is_accused_by_chance(pairs):
    """docs/judge.md: of 2,000 judges with a coin in 3 of 10 questions 4.7% have a position bias, 0.6% a length bias."""
    rng, n_position, n_length = random.Random(0), 0, 0
    verdict = lambda right: right if rng.random() > 0.3 else rng.choice("AB")
    for _ in range(2000):
        found = judge_check.measured(pairs, [(verdict("A"), verdict("B")) for _ in pairs])
        n_position += not found["position"][1] <= 0.5 <= found["position"][2]
        n_length += not found["length"][1] <= 0 <= found["length"][2]
    assert n_position / 2000 == pytest.approx(0.047, abs=0.014) and n_length / 2000 == pytest.approx(0.006, abs=0.005)

def test_few_pairs_allow_no_conclusion(pairs):
    """Four of four heads are no proof of a biased coin."""
    found, said = checked(judges.first, pairs[:28])
    assert said == ["too few pairs to tell: 28 have two readable verdicts, and 30 are needed"]
    assert found["position"][0] == 1
    longer = [p for p in pairs if len(p["after"].split()) > len(p["worse"].split())]
    _, said = checked(judges.long, longer)
    assert said == ["too few pairs to tell whether it prefers long answers: the better one is the longer one in 50, "
                    "and the shorter one in 0"]

def test_unreadable_answers_are_said(pairs):
    """The measures say nothing of questions without a readable answer, so their share stands beside them."""
    found, said = checked(judges.mixed(judges.honest, judges.unreadable, 0.25), pairs)
    assert 0.15 < found["unreadable"][0] < 0.35 and found["accuracy"][0] == 1
    assert said == [f"{found['unreadable'][0]:.0%} of its answers cannot be read"]

def test_soft_votes_may_be_good_where_letters_are_not():
    """A judge that always says A, with more confidence where A is better, is of use in both orders together."""
    samples = judge_check.toy_pairs(40)
    votes = [(0.9, 0.7)] * 40
    said = judge_check.conclusions(judge_check.measured(samples, [("A", "A")] * 40, votes))
    assert said[1] == "its soft votes are better than chance: 100% of the pairs are right" and "first answer" in said[2]

# ---------------------------------------------------------------------------------------------------------------------
# pairs with a known order

def test_pairs_of_the_toy_world(pairs):
    """
    The reward differs clearly, every second better review is the longer one, and no review is in two pairs. Without the
    balance, a judge that prefers length would have an accuracy of its own.
    """
    odds = judges.log_odds
    for i, p in enumerate(pairs):
        long, short = (p["after"], p["worse"])[::1 if i % 2 == 0 else -1]
        assert len(long.split()) >= 1.25 * len(short.split())
        assert odds("", p["after"]) >= 1.386 and odds("", p["worse"]) <= -1.386    # log(0.8 / 0.2)
    texts = [p[side] for p in pairs for side in ("after", "worse")]
    assert len(set(texts)) == 200 == 2 * len(pairs)
    assert judge_check.toy_pairs(100) == pairs != judge_check.toy_pairs(100, seed=1)

def test_reviews_in_plain_words():
    """A model that was not trained on the toy world's spelling should not stumble over it."""
    text = "i watched this film last night . i found the plot not dull . in short , a gem ."
    plain = judge_check.plain(text)
    assert plain == "I watched this film last night. I found the plot not dull. In short, a gem."
    assert judges.log_odds("", plain) == toy.log_odds(text)

@pytest.fixture
def imdb(tmp_path):
    """A folder of 120 reviews: short and long ones of either label, and one that is too long. Labels 1 and 0."""
    folder, rows = tmp_path / "imdb", []
    for i in range(60):
        for label, word in ((1, "superb"), (0, "dull")):
            rows.append({"text": f"review {i} was {word}" + " and so on" * (i % 2 * 4), "label": label})
    rows.append({"text": "superb " * 201, "label": 1})
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text(json.dumps({"text": "of the training set", "label": 1}) + "\n")
    return folder

def test_pairs_of_imdb(imdb, capsys):
    """Positive against negative, from the test split, without reviews that do not fit a small judge's context."""
    found = judge_check.known_pairs("imdb", 40, str(imdb))
    assert len(found) == 40 and all("superb" in p["after"] and "dull" in p["worse"] for p in found)
    assert [len(p["after"]) > len(p["worse"]) for p in found] == [True, False] * 20
    assert "120 examples to draw pairs from; dropped: 1 longer than 200 words" in capsys.readouterr().out
    assert not any("training" in p["after"] or len(p["after"].split()) > 200 for p in found)

def test_pairs_of_a_file_keep_their_prompt_and_question(tmp_path, capsys):
    """Chosen is the better one. Equal and empty answers have no order: they are dropped and counted."""
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea."} for i in range(5)]
    rows += [{"prompt": "x", "chosen": "same", "rejected": "same "}, {"prompt": "x", "chosen": " ", "rejected": "b"}]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = judge_check.known_pairs(str(path), 100, None)
    assert sorted(p["prompt"].strip() for p in found) == [f"What is {i}?" for i in range(5)]
    assert all(p["after"].strip().startswith("It is") and p["worse"].strip() == "No idea." for p in found)
    out = capsys.readouterr().out
    assert "5 examples to draw pairs from; dropped: 1 chosen == rejected, 1 with an empty answer" in out
    assert judge_check.known_pairs(str(path), 3, None) == found[:3]    # a longer check asks about these again

def test_a_rate_in_words():
    """Rounding gives Wilson's interval of 0 of 60 a lower end of -1e-17, which would be shown as -0.000."""
    assert judge_check.rate(measures.wilson(0, 60)) == "0.000 [0.000, 0.060]" and measures.wilson(0, 60)[1] < 0
    assert judge_check.rate([0.25, -0.0004, 1], "+") == "+0.250 [+0.000, +1.000]"
    assert judge_check.rate([None, 0, 1]) == "none"

# ---------------------------------------------------------------------------------------------------------------------
# a check from its command to a later win rate

pytest.importorskip("openai")

@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with four samples, in a folder where nothing has been checked."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    samples = [{"prompt": f"How is {i}?", "before": "one", "after": "one and two"} for i in range(4)]
    (tmp_path / "run" / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    return tmp_path / "run"

def check(there, *more, limit=4):
    return judge.main(["--check", "toy", "--judge_limit", str(limit), "--judge_url", there.url, *more])

def test_a_later_win_rate_says_what_the_check_said(run, capsys):
    """
    Only of the same judge and the same form of verdict. A judge that was not checked is said to be so, with the command
    that checks it.
    """
    with judges.serving(judges.long) as there:
        flags = ["--run", "run", "--judge_url", there.url, "--judge_model", "m"]
        before = judge.main(flags)
        assert before["checks"] == [] and "The judge was never checked." in capsys.readouterr().out
        found = check(there, "--judge_model", "m", limit=30)
        assert "prefers the longer answer" in capsys.readouterr().out
        after = judge.main(flags)
        out = capsys.readouterr().out
        assert after["checks"] == [found] and json.loads((run / "judge.json").read_text())["checks"] == [found]
        assert "The judge, checked on toy, 30 pairs: accuracy 0.500 [" in out and "prefers the longer answer" in out
        assert after["rates"]["win"][0] == 1    # which the check explains
        for other in (["--judge_model", "another"], ["--verdict", "choice"]):
            assert judge.main([*flags, *other])["checks"] == []
            [line] = [line for line in capsys.readouterr().out.splitlines() if "never checked" in line]
            command = shlex.split(line.partition("python judge.py ")[2])
            args = judge.get_args(command)
            assert args.check == "toy" and (args.judge_model == "another" or args.verdict == "choice")
    assert (run.parent / "out" / "judge" / "m" / "check.json").exists()

def test_a_check_of_another_judge_is_never_shown(run, capsys):
    """Two judges may be kept in one folder, and two names may become one name of a folder."""
    with judges.serving(judges.honest) as there:
        check(there, "--judge_model", "a", "--check_dir", "both")
        second = check(there, "--judge_model", "b", "--check_dir", "both")
        capsys.readouterr()
        flags = ["--run", "run", "--judge_url", there.url, "--check_dir", "both"]
        assert judge.main([*flags, "--judge_model", "b"])["checks"] == [second]
        assert judge.main([*flags, "--judge_model", "c"])["checks"] == []
    assert len(json.loads(open("both/check.json").read())) == 2
    folders = [judge_check.folder_of(name) for name in ("a/b", "a-b", "a b", "..", "../x", "", "x" * 300, "ä")]
    assert len(set(folders)) == len(folders)
    assert all(f.parent.name == "judge" and f.name not in (".", "..") and len(f.name) < 80 for f in folders)

def test_checks_of_several_kinds_are_kept_side_by_side(run):
    """A check of the same kind replaces the earlier one; a check in the other form, or on other pairs, does not."""
    with judges.serving(judges.honest) as there:
        check(there)
        check(there, "--verdict", "choice")
        check(there, limit=6)
    kept = [(c["verdict"], c["pairs"]) for c in json.loads((run.parent / "out/judge/default/check.json").read_text())]
    assert kept == [("text", 6), ("choice", 4)]

def test_an_interrupted_check_asks_the_rest_alone(run):
    """Each answer is on the disk when it counts. A line that was cut is asked again."""
    with judges.serving(judges.honest) as there:
        found = check(there)
        assert len(there.asked) == 8 and found["accuracy"][0] == 1
        path = run.parent / "out" / "judge" / "default" / "check.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6])[:-5])
        assert check(there) == found and len(there.asked) == 8 + 3
        assert check(there) == found and len(there.asked) == 11

def test_a_check_with_open_questions_is_not_stored(run, capsys):
    """Half of the answers, from a server that died, are no check. The same command asks for the others."""
    def dies(text, body):
        dies.asked += 1
        return judges.honest(text) if dies.asked < 6 else {"status": 400, "error": "gone"}
    dies.asked = 0
    with judges.serving(dies) as there:
        with pytest.raises(SystemExit, match="questions got no answer"):
            check(there)
    folder = run.parent / "out" / "judge" / "default"
    assert not (folder / "check.json").exists() and len((folder / "check.jsonl").read_text().splitlines()) == 5

def test_a_judge_that_cannot_be_read_is_not_checked(run, capsys):
    """There is nothing to measure. One sentence with an example says so."""
    with judges.serving(judges.unreadable) as there:
        with pytest.raises(SystemExit, match="none of the 8 answers has a verdict .* --verdict choice"):
            check(there)
    assert not (run.parent / "out/judge/default/check.json").exists() and "accuracy" not in capsys.readouterr().out

def test_mostly_unreadable_is_reported_and_an_error(run, capsys):
    """The report is of the rest. The status is 1, so that a script does not take it for a check."""
    with judges.serving(judges.mixed(judges.honest, judges.unreadable, 0.6)) as there:
        with pytest.raises(SystemExit, match="of 60 answers have no verdict"):
            check(there, limit=30)
    out = capsys.readouterr().out
    assert "unreadable          0.6" in out and "too few pairs to tell: 3 have two readable verdicts" in out

def test_the_task_is_the_files_own(run, tmp_path):
    """Pairs of a file are judged as answers to their prompt, reviews by how positive they are."""
    rows = [{"prompt": f"{i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(2)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with judges.serving(judges.long) as there:
        found = judge.main(["--check", "mine.jsonl", "--task", "summary", "--judge_url", there.url])
        assert found["task"] == "summary" and found["what"] == "mine.jsonl" and found["accuracy"][0] == 1
        assert all("two summaries" in text for text in there.texts)
        assert "too few pairs" in found["says"][0]

@pytest.mark.parametrize("flags, words", [
    (["--check", "toy", "--run", "run"], "--run has no effect with --check"),
    (["--check", "toy", "--against", "before"], "--against has no effect with --check"),
    (["--check", "toy", "--temperature", "1"], "--temperature has no effect with --check"),
    (["--check", "toy", "--arena", "a", "b"], "--arena has no effect with --check"),
    (["--check", "toy", "--arena_dir", "x"], "--arena_dir has no effect"),
    (["--check", "toy", "--task", "dialogue"], "--task has no effect with --check toy"),
    (["--check", "imdb", "--task", "summary"], "--task has no effect with --check imdb"),
    (["--check", "toy", "--data_dir", "x"], "--data_dir has no effect"),
    (["--check", "x.jsonl", "--data_dir", "x"], "--data_dir has no effect"),
    (["--run", "run", "--data_dir", "x"], "--data_dir has no effect"),
    (["--check", "toy", "--verdict", "choice", "--judge_max_tokens", "9"], "--judge_max_tokens has no effect"),
    ([], "name a --run")])
def test_flags_without_effect_are_refused(flags, words, capsys):
    """A flag that is ignored makes a user believe that it did something."""
    with pytest.raises(SystemExit) as end:
        judge.main(flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error

@pytest.mark.parametrize("flags, words", [
    (["--check", "nothing.jsonl"], "nothing.jsonl: no such file"),
    (["--check", "imdb", "--data_dir", "nowhere"], "nowhere"),
    (["--check", "empty.jsonl"], "empty.jsonl: has no pairs"),
    (["--check", "texts.jsonl"], "texts.jsonl"),
    (["--check", "cnn_dailymail", "--data_dir", "news"], "for evaluation only"),
    (["--check", "toy", "--judge_limit", "99999"], "at most"),
    (["--check", "toy", "--check_dir", "empty.jsonl"], "empty.jsonl"),
    (["--check", "toy", "--check_dir", "damaged"], "is not as judge.py --check writes it"),
    (["--run", "run", "--check_dir", "damaged"], "is not as judge.py --check writes it")])
def test_input_that_cannot_be_used_is_one_line(run, flags, words, capsys):
    """Before anything is asked: there is no endpoint."""
    open("empty.jsonl", "w").close()
    (run.parent / "news").mkdir()
    (run.parent / "news" / "test.jsonl").write_text('{"article": "a", "highlights": "b"}\n')
    open("texts.jsonl", "w").write('{"text": "no pair"}\n')
    (run.parent / "damaged").mkdir()
    good = {"judge": "default", "what": "toy", "task": "sentiment", "verdict": "text", "url": "u", "says": ["x"],
            "pairs": 1, "accuracy": [1, 0, 1], "position": [1, 0, 1], "length": [1, 0, 1]}
    (run.parent / "damaged" / "check.json").write_text(json.dumps([good | {"accuracy": "good"}]))
    with pytest.raises(SystemExit) as end:
        judge.main([*flags, "--judge_url", "http://127.0.0.1:9/v1"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error
