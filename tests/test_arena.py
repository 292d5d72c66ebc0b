"""judge.py --arena, and the win rate at equal length in judge.json: judges with a known taste, and counts by hand."""
import json
import math
from pathlib import Path

import pytest

import arena
import judge
import judges
from winrates import bradley_terry

pytest.importorskip("openai")

STARS = {"one": "***", "two": "**", "three": "*"}    # by the answers' stars, one beats two, and two beats three
N = 6

def write_run(folder, answers, temperature=1, prompts=None):
    """A folder with an eval.json of these answers."""
    folder.mkdir(exist_ok=True)
    prompts = prompts or [f"question {i}?" for i in range(len(answers))]
    samples = [{"prompt": p, "before": "nothing", "after": a} for p, a in zip(prompts, answers)]
    (folder / "eval.json").write_text(json.dumps({"temperature": temperature, "samples": samples}))
    return str(folder)

@pytest.fixture
def runs(tmp_path):
    """
    Three runs. Run one is the best, except that on question 0 it has one star and on question 1 as many as run two. The
    answers have the same length.
    """
    stars = {name: [s] * N for name, s in STARS.items()}
    stars["one"][:2] = ["*", "**"]
    return [write_run(tmp_path / name, [f"answer {i} {s:4}{name:6}." for i, s in enumerate(column)])
            for name, column in stars.items()]

def by_stars(text, body=None):
    """The judge that prefers more stars, and cannot decide between equal ones."""
    return judges.larger(text, lambda prompt, answer: answer.count("*"))

def compete(runs, server, tmp_path, *more):
    return judge.main(["--arena", *runs, "--judge_url", server.url, "--arena_dir", str(tmp_path / "arena"), *more])

# ---------------------------------------------------------------------------------------------------------------------
# counts

def test_an_arena_by_hand(runs, tmp_path, capsys):
    """
    Six prompts. One against two: 4 wins, a tie, a loss. One against three: 5 wins and a tie. Two against three: 6 wins.
    The file, the ranking and the strengths follow from these counts.
    """
    with judges.serving(by_stars) as there:
        found = compete(runs, there, tmp_path)
    one, two, three = runs
    counts = {tuple(row["runs"]): (row["win"], row["tie"], row["lose"]) for row in found["meetings"]}
    assert counts == {(one, two): (4, 1, 1), (one, three): (5, 1, 0), (two, three): (6, 0, 0)}
    assert [row["raw"][0] for row in found["meetings"]] == pytest.approx([4.5 / 6, 5.5 / 6, 1])
    strengths = bradley_terry([[0, 4.5, 5.5], [1.5, 0, 6], [0.5, 0, 0]]).tolist()
    assert list(found["strengths"]) == [one, two, three]
    assert [value for value, _, _ in found["strengths"].values()] == pytest.approx(strengths)
    assert all(low <= value <= high for value, low, high in found["strengths"].values())
    assert json.loads((tmp_path / "arena" / "arena.json").read_text()) == found
    out = capsys.readouterr().out
    ranking = [line.split()[0] for line in out.splitlines() if line.startswith(str(tmp_path)) and "against" not in line]
    assert ranking == [one, two, three] and f"{one} against {two}: wins 0.750" in out
    assert "6 pairs, 1 ties, 0 flips, 0 unreadable" in out

def test_the_order_of_runs_does_not_matter(runs, tmp_path):
    """The strengths are those of the runs, not of the order in which they are named."""
    with judges.serving(by_stars) as there:
        one, other = (compete(order, there, tmp_path)["strengths"] for order in (runs, runs[::-1]))
    assert list(one) == list(other)
    assert [v[0] for v in one.values()] == pytest.approx([v[0] for v in other.values()])

def test_both_orders_are_asked_and_a_fourth_run_costs_only_its_own_questions(runs, tmp_path):
    """3 meetings of 6 prompts in 2 orders are 36 questions. A fourth run meets three others: 36 more."""
    fourth = write_run(tmp_path / "four", [f"answer {i} ****four  ." for i in range(N)])
    with judges.serving(by_stars) as there:
        compete(runs, there, tmp_path)
        assert len(there.asked) == len(set(there.texts)) == 36
        compete(runs, there, tmp_path)
        assert len(there.asked) == 36
        found = compete([*runs, fourth], there, tmp_path)
        assert len(there.asked) == 72 and next(iter(found["strengths"])) == fourth

def test_a_judge_of_the_first_place_makes_all_runs_equal(runs, tmp_path):
    """Asked in one order only, the run that is named first would win everything."""
    with judges.serving(judges.first) as there:
        found = compete(runs, there, tmp_path)
    assert {row["flip"] for row in found["meetings"]} == {N} and {row["raw"][0] for row in found["meetings"]} == {0.5}
    assert [v[0] for v in found["strengths"].values()] == pytest.approx([0, 0, 0], abs=1e-9)

def test_an_unreadable_answer_is_no_vote(runs, tmp_path):
    """It is neither a tie nor a loss, and it is counted."""
    say = lambda text, body: "Hard to say." if "question 5?" in text else by_stars(text)
    with judges.serving(say) as there:
        found = compete(runs, there, tmp_path)
    first = found["meetings"][0]
    assert (first["win"], first["tie"], first["lose"], first["invalid"]) == (3, 1, 1, 1)
    assert first["raw"][0] == pytest.approx(3.5 / 5)

def test_soft_votes_count_as_probabilities(runs, tmp_path):
    """With log-probs of 0.8 and 0.2, a win in both orders is a vote of 0.8."""
    with judges.serving(judges.soft(lambda text, body=None: judges.larger(text, stars_then_name), 0.8)) as there:
        found = compete(runs, there, tmp_path, "--verdict", "choice")
    assert found["meetings"][2]["raw"][0] == pytest.approx(0.8)    # two against three: six wins
    one, two, three = found["strengths"].values()
    assert two[0] - three[0] == pytest.approx(math.log(0.8 / 0.2), abs=0.6)

def stars_then_name(prompt, answer):
    """Stars, and the name of the run where stars are equal, since one letter has no ties."""
    return answer.count("*"), answer

def test_the_limit_takes_the_first_prompts(runs, tmp_path):
    """Of the first two prompts, run one loses one against run two and ties the other."""
    with judges.serving(by_stars) as there:
        found = compete(runs, there, tmp_path, "--judge_limit", "2")
    assert (found["meetings"][0]["tie"], found["meetings"][0]["lose"], len(there.asked)) == (1, 1, 12)

def test_a_ranking_needs_all_answers(runs, tmp_path):
    """Without the answers of one question, no file is written. The same command asks it again and writes it."""
    with judges.serving(lambda text, body: {"status": 400, "error": "no"} if "question 3?" in text
                        else by_stars(text)) as there, pytest.raises(SystemExit, match="6 questions got no answer"):
        compete(runs, there, tmp_path)
    assert not (tmp_path / "arena" / "arena.json").exists()
    with judges.serving(by_stars) as there:
        compete(runs, there, tmp_path)
    assert len(there.asked) == 6 and (tmp_path / "arena" / "arena.json").exists()

# ---------------------------------------------------------------------------------------------------------------------
# refusals

def refused(argv, capsys):
    """The line that judge.py prints when it refuses a command."""
    with pytest.raises(SystemExit) as end:
        judge.main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    return said

def test_runs_that_cannot_meet_are_refused(runs, tmp_path, capsys):
    """The message is one line and comes before anything is asked: there is no server."""
    answers = [f"answer {i}" for i in range(N)]
    others = write_run(tmp_path / "others", answers, prompts=[f"other question {i}?" for i in range(N)])
    colder = write_run(tmp_path / "colder", answers, temperature=0.5)
    empty = [write_run(tmp_path / name, []) for name in ("empty", "as empty")]
    (tmp_path / "bare").mkdir()
    link = str(Path(runs[0]) / ".." / "one")
    for more, message in (([runs[0]], "two different runs"), ([runs[0], runs[0]], "two different runs"),
                          ([runs[0], link], "two different runs"), ([runs[0], others], "different prompts"),
                          ([runs[0], colder], "temperature 0.5"), (empty, "no samples"),
                          ([runs[0], str(tmp_path / "bare")], "eval.json")):
        assert message in refused(["--arena", *more], capsys)

def test_flags_without_effect_are_refused(runs, capsys):
    """An arena has its runs from --arena alone, and only an arena writes into --arena_dir."""
    for more in (["--run", runs[0]], ["--against", "chosen"], ["--temperature", "1"]):
        assert f"{more[0]} has no effect with --arena" in refused(["--arena", *runs, *more], capsys)
    assert "--arena_dir has no effect without --arena" in refused(["--run", runs[0], "--arena_dir", "x"], capsys)
    assert "--arena" in refused([], capsys)

# ---------------------------------------------------------------------------------------------------------------------
# the win rate at equal length of one run

def test_a_judging_has_the_win_rate_at_equal_length(tmp_path, capsys):
    """
    A judge of length alone, and a run that is longer in 14 of 20 pairs and as long in one. Its raw win rate is 0.725.
    At equal length nothing is left of it, and the effect of length is printed.
    """
    samples = [{"prompt": f"question {i}?", "after": "word " * (6 + i), "before": "word " * 11} for i in range(20)]
    (tmp_path / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    with judges.serving(judges.long) as there:
        found = judge.main(["--run", str(tmp_path), "--judge_url", there.url])
    equal = found["equal_length"]
    assert equal["raw"][0] == found["rates"]["win"][0] + 0.025 == 0.725
    assert equal["win_rate"][0] == pytest.approx(0.5, abs=0.1) and equal["gamma"][1] > 0
    assert json.loads((tmp_path / "judge.json").read_text())["equal_length"] == equal
    assert "at equal length (longer answers win more often: gamma" in capsys.readouterr().out

def test_votes_by_hand():
    """Of the four kinds of pairs, and of one whose answer is missing. A flip is half a win, like a tie."""
    samples = [{"prompt": f"{i}", "after": f"a {i}", "before": f"b {i}"} for i in range(5)]
    how = {"against": "before", "task": "dialogue", "model": "m"}
    keys = [q["key"] for q in arena.questions(samples, **how)]
    said = ["A", "B", "B", "A", "A", "A", "neither", "A", "A"]    # win, lose, flip, tie, half an answer
    known = {key: f"Better: {verdict}" for key, verdict in zip(keys, said)}
    assert arena.pair_votes(samples, known, {}, **how) == [1, 0, 0.5, 0.5, None]
    soft = {keys[0]: 0.9, keys[1]: 0.3, keys[2]: 0.6}    # the third has one order only, so its verdicts count
    assert arena.pair_votes(samples, known, soft, **how) == pytest.approx([0.8, 0, 0.5, 0.5, None])
