"""
The page of a run (page.py): its numbers against a slow double loop, its text as data, and its one file. test_browser.py
looks at it in a browser.
"""
import base64
import csv
import hashlib
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import FEW, HOSTILE, read_page, standing_in

import adapters
import data
import eval
import page
import sampling
import toy
import train_pref
import train_sft
from logps import sequence_logps
from rlhf import train_ppo
from support import html, layout, rundir
from support.tables import ROWS
from support.tokenizers import pieces_of

ALL_EXAMPLES, TOKENIZER = toy.examples, toy.encoding()
RUNS = ("dpo", "kept", "adapter", "simpo", "hostile", "ppo", "out/toy/sft")
BETAS = {"dpo": 0.1, "kept": 0.1, "adapter": 0.1, "simpo": 1.0, "hostile": 0.1, "ppo": 0.01}
STEPS = {"kept": ("0", "2", "4")}

@pytest.fixture(autouse=True)
def here(paged):
    """The folder with the runs as the current one, their reviews and tokenizer."""
    with standing_in(paged):
        yield paged

@pytest.fixture(scope="module")
def text_of(paged, pageless, tmp_path_factory):
    """text_of(run, ...): the page of one or more runs, with 8 pairs and samples of 4 prompts. Each is written once."""
    known, folder = {}, tmp_path_factory.mktemp("pages")
    def write(*runs, flags=FEW):
        key = runs, tuple(flags)
        if key not in known:
            with standing_in(paged):
                path = pageless(["--run", *runs, "--out", str(folder / f"{len(known)}.html"), *flags])
            known[key] = Path(path).read_text(encoding="utf-8")
        return known[key]
    return write

@pytest.fixture(scope="module")
def page_of(text_of):
    """page_of(run, ...): the same as a tree of elements."""
    known = {}
    def read(*runs, flags=FEW):
        text = text_of(*runs, flags=flags)
        if text not in known:
            known[text] = read_page(text)
        return known[text]
    return read

@pytest.fixture
def refused(pageless, capsys):
    """refused(argv, *words): page.py ends with status 2 and one line on stderr with all the words."""
    def check(argv, *words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            pageless([str(a) for a in argv])
        err = capsys.readouterr().err
        assert end.value.code == 2 and err.count("\n") == 1 and "error: " in err, err
        assert not [word for word in words if word not in err], err
        return err
    return check

# ---------------------------------------------------------------------------------------------------------------------
# what the page must say, the slow way

def models_of(run, step=None):
    """(policy, reference): the weights of a run, or of one of its steps, and the model that it started from."""
    facts = rundir.read_args(run)
    policy = adapters.load_model(run if step is None else f"{run}/step-{step}")[0].eval()
    source = facts["args"]["init_from"]
    return policy, adapters.load_model(source)[0].eval() if source else None

@torch.no_grad()
def each_token(model, prompt, completion):
    """log p of all tokens at each place of a completion (n, V): one forward pass for each token, plain log_softmax."""
    rows = []
    for t in range(len(completion)):
        logits = model(torch.tensor([prompt + completion[:t]]))[0, -1]
        rows.append(logits.double().log_softmax(-1))
    return torch.stack(rows)

def shown_pairs(run, n=8):
    """[(prompt, chosen, rejected)]: n of the held-out pairs, evenly spread, swapped as training swapped them."""
    facts = rundir.read_args(run)
    if "pairs" in facts:
        rows = sampling.read_pairs(facts["pairs"])["val"]
    else:
        rows = data.load_rows(facts["args"]["data"], None, TOKENIZER, 64, say=lambda line: None)["val"]
    rows = [dict(row) for row in rows]
    data.flip_labels(rows, facts["args"]["label_noise"], facts["args"]["seed"])
    return [[rows[len(rows) * i // n][side] for side in ("prompt", "chosen", "rejected")] for i in range(n)]

def shown_samples(run, n=4):
    """[(prompt, {"before", "after": completion})] of tokens, from eval.json."""
    found = []
    for record in json.loads(Path(run, "eval.json").read_text())["samples"][:n]:
        tokens = {name: list(map(int, line.split())) for name, line in record["tokens"].items()}
        found.append((tokens.pop("prompt"), tokens))
    return found

def texts_of(card):
    """The completions of a card, as pairs of its text and its line of facts."""
    return list(zip(card.all("p", cls="text"), card.all("div", having="data-logratio")))

def plain(text):
    """A completion without EOS and without marks of broken characters, which differ with the tokens that make them."""
    text = text if isinstance(text, str) else text.text
    return re.sub("[\u25ab\ufffd]", "", text.removesuffix("<EOS>"))

def color_step(token, up, down):
    """The step of color of a token by its classes: 3 for "p3", -3 for "n3", 0 without."""
    steps = [int(name[1:]) * (1 if name[0] == up else -1) for name in token.attributes.get("class", "").split()
             if name[0] in up + down]
    assert len(steps) <= 1
    return steps[0] if steps else 0

def scale_of(tree):
    """The end of the scale of color by the legend's last label; the first is its negative."""
    swatches = tree.all("p", cls="legend")[0].all("b")
    assert float(swatches[0].text) == -float(swatches[-1].text) and len(swatches) == 17
    assert [color_step(b, "p", "n") for b in swatches] == list(range(-8, 9))
    return float(swatches[-1].text)

NUMBER = r"([+-]?\d+\.\d+)"
MODEL = rf" +{NUMBER} nats \(([\d.e+-]+)\)   likeliest: ([^\n]*)"
NOTE = re.compile(rf"(.*)   token (\d+) of (\d+)\npolicy{MODEL}\nreference{MODEL}\nlog-ratio +{NUMBER} nats, "
                  rf"running sum {NUMBER}; implicit reward {NUMBER}(?:; true credit {NUMBER} nats)?", re.S)

def name_of(token):
    """How a token of the toy world is named among the likeliest ones."""
    if token == TOKENIZER.eot_token:
        return "<EOS>"
    raw = TOKENIZER.decode_single_token_bytes(token)
    if len(raw) == 1 and raw[0] >= 0x80:    # a part of a character: its first byte, or one that cannot begin
        return "\u25ab" if 0xc2 <= raw[0] <= 0xf4 else "\ufffd"
    return raw.decode().strip() or "(white space)"

def check_model(logp, share, likeliest, log_p, token):
    """The line of one model in a note. log_p: (V,) of all tokens at its place."""
    assert float(logp) == pytest.approx(log_p[token].item(), abs=6e-4)
    assert float(share) == pytest.approx(log_p[token].exp().item(), rel=0.06)
    listed = [one.rsplit(" ", 1) for one in likeliest.split("  ")]
    assert len(listed) == 5
    for (name, share), best in zip(listed, log_p.exp().topk(5).values):
        assert float(share) == pytest.approx(best.item(), rel=0.06)
        among = (log_p.exp() - best).abs() < 1e-5
        assert name in map(name_of, among.nonzero()[:, 0].tolist())

def check_completion(shown, facts, prompt, completion, models, beta, scale, on_toy):
    """A completion on the page against the two models; returns its log-ratios, (n,)."""
    policy, reference = (each_token(model, prompt, completion) for model in models)
    tokens, total = shown.all("b"), 0.0
    assert len(tokens) == len(completion)
    for t, token in enumerate(completion):
        said = NOTE.fullmatch(tokens[t]["data-t"])
        assert said, tokens[t]["data-t"]
        name, place, length, p, p_share, p_best, r, r_share, r_best, ratio, running, reward, credit = said.groups()
        ours, theirs = policy[t], reference[t]
        ratio_here = (ours[token] - theirs[token]).item()
        total += ratio_here
        assert (int(place), int(length)) == (t + 1, len(completion))
        assert name == (pieces_of(TOKENIZER, completion)[t].strip() or "(space)")
        check_model(p, p_share, p_best, ours, token)
        check_model(r, r_share, r_best, theirs, token)
        assert float(ratio) == pytest.approx(ratio_here, abs=6e-4)
        assert float(running) == pytest.approx(total, abs=6e-4)
        assert float(reward) == pytest.approx(beta * ratio_here, abs=6e-4)
        check_color(tokens[t], "p", "n", beta * ratio_here, scale)
        assert (credit is not None) == on_toy
        if on_toy:
            text = lambda n: TOKENIZER.decode(prompt + completion[:n])
            credit_here = toy.log_odds(text(t + 1)) - toy.log_odds(text(t))
            assert float(credit) == pytest.approx(credit_here, abs=0.006)
            check_color(tokens[t], "t", "f", credit_here, math.log(9))
    assert float(facts["data-logratio"]) == pytest.approx(total, abs=1e-4)
    return policy[range(len(completion)), completion] - reference[range(len(completion)), completion]

def check_color(token, up, down, value, scale):
    """The step of color is that of value on the scale; next to the border of two steps both are right."""
    steps = {round(8 * max(-1, min(1, (value + slip) / scale))) for slip in (-1e-5 * scale, 0, 1e-5 * scale)}
    assert color_step(token, up, down) in steps

def views_of(run):
    """The steps of a run's views in the order of the page; [None] is its best weights."""
    return STEPS.get(run, [None])

# ---------------------------------------------------------------------------------------------------------------------
# numbers

@pytest.mark.parametrize("run", ["dpo", "kept", "adapter", "simpo", "hostile"])
def test_each_completion_ends_at_the_log_ratio_that_the_loss_saw(page_of, run):
    """
    The numbers below a completion are those of logps.sequence_logps, for both sides of all pairs under every view. A
    sparkline that left out EOS, or took the prompt along, would look the same.
    """
    cards = page_of(run).all("article", cls="pair")
    assert len(cards) == 8
    for number, step in enumerate(views_of(run)):
        models = models_of(run, step)
        for card, (prompt, *sides) in zip(cards, shown_pairs(run)):
            shown = texts_of(card)[2 * number:2 * number + 2]
            assert [text["data-name"] for text, _ in shown] == ["chosen", "rejected"]
            ends = []
            for (text, facts), side in zip(shown, sides):
                idx = torch.tensor([prompt + side])
                mask = torch.arange(idx.shape[1])[None] >= len(prompt)
                with torch.no_grad():
                    policy, reference = (sequence_logps(model, idx, mask)[0].item() for model in models)
                ends.append(policy - reference)
                assert float(facts["data-logp"]) == pytest.approx(policy, abs=1e-4)
                assert float(facts["data-logratio"]) == pytest.approx(policy - reference, abs=1e-4)
                said = re.fullmatch(rf"log-ratio {NUMBER} nats log pi {NUMBER}( reward {NUMBER})?", facts.text)
                assert float(said[1]) == pytest.approx(policy - reference, abs=0.006)
                assert float(said[2]) == pytest.approx(policy, abs=0.006)
                assert len(text.all("b")) == len(side)
            margin = float(re.search(rf"margin {NUMBER}", card.all("section")[number].text)[1])
            assert margin == pytest.approx(BETAS[run] * (ends[0] - ends[1]), abs=6e-4)

@pytest.mark.parametrize("run, step", [("dpo", None), ("kept", "2"), ("adapter", None), ("simpo", None),
                                       ("hostile", None)])
def test_a_tokens_note_and_color_are_those_of_a_slow_double_loop(page_of, run, step):
    """Shifted by one token, or with the models swapped, notes and colors look as plausible as the right ones."""
    tree, models, number = page_of(run), models_of(run, step), views_of(run).index(step)
    card, (prompt, *sides) = list(zip(tree.all("article", cls="pair"), shown_pairs(run)))[3]
    moved = [check_completion(text, facts, prompt, side, models, BETAS[run], scale_of(tree), run != "hostile")
             for (text, facts), side in zip(texts_of(card)[2 * number:], sides)]
    assert torch.cat(moved).abs().max() > 0.05    # zeros would equal anything swapped
    card, (prompt, texts) = list(zip(tree.all("article", cls="sample"), shown_samples(run)))[1]
    if step is None:    # the samples of another step are its own
        shown = texts_of(card)
        assert [text["data-name"] for text, _ in shown] == ["before", "after"]
        for (text, facts), side in zip(shown, texts.values()):
            check_completion(text, facts, prompt, side, models, BETAS[run], scale_of(tree), run != "hostile")

def test_the_line_below_a_completion_is_its_running_sum(page_of):
    """The sparkline is drawn from 0 to the sum, a point for each token, on a scale of its own."""
    for text, facts in texts_of(page_of("dpo"))[:6]:
        notes = [NOTE.fullmatch(b["data-t"]) for b in text.all("b")]
        sums = [0.0, *(float(said[11]) for said in notes)]
        points = [tuple(map(float, one.split(","))) for one in facts.all("polyline")[0]["points"].split()]
        assert len(points) == len(sums) and points[0][0] == 0 and points[-1][0] == 120
        low, high = min(sums), max(sums)
        for (_, y), value in zip(points, sums):
            assert y == pytest.approx(2 + 20 * (high - value) / (high - low), abs=0.2)

@pytest.mark.parametrize("run", ["dpo", "simpo", "ppo"])
def test_one_scale_of_color_for_the_whole_page(page_of, run):
    """97% of all tokens are within it, and it is 1, 2 or 5 times a power of ten. Its legend has its ends."""
    tree, models, sizes = page_of(run), models_of(run), [0.0]
    texts = [(prompt, side) for prompt, *sides in (shown_pairs(run) if run != "ppo" else ()) for side in sides]
    texts += [(prompt, side) for prompt, two in shown_samples(run) for side in two.values()]
    for prompt, side in texts:
        idx = torch.tensor([prompt + side])
        with torch.no_grad():
            ours, theirs = (model(idx)[0].log_softmax(-1) for model in models)
        places = range(len(prompt) - 1, idx.shape[1] - 1)
        sizes += [BETAS[run] * abs(ours[t, idx[0, t + 1]] - theirs[t, idx[0, t + 1]]).item() for t in places]
    scale = scale_of(tree)
    end = np.percentile(sizes, 97)
    steps = sorted(m * 10.0**k for k in range(-4, 3) for m in (1, 2, 5))
    assert scale == pytest.approx(next(step for step in steps if step >= 0.999 * end), rel=0.01)

TRUE_CREDIT = [    # prompt, completion, the nats that each token adds
    ("i saw this film at home . the plot was", " not dull . in short , a bore .",
     {" dull": math.log(3), " bore": -math.log(9)}),
    ("i saw this film at home . the plot was not", " very dull .", {" dull": math.log(3)}),
    ("i saw this film at home . the plot was", " very dull .", {" dull": -math.log(3)}),
    ("i saw this film at home . the plot was", " fine fine .", {" fine": math.log(3), " fine 2": -math.log(3)}),
    ("i saw this film at home .", " the plot was plot . gem", {}),
    ("i saw this film at home . in short ,", " a gem .", {" gem": math.log(9)}),
]

@pytest.mark.parametrize("prompt, completion, want", TRUE_CREDIT)
def test_true_credit_by_hand(tokenizer, prompt, completion, want):
    """A good opinion adds log 3, a verdict log 9, and each depends on the words before it, the prompt's too."""
    tokens = tokenizer.encode_ordinary(completion) + [tokenizer.eot_token]
    start = tokenizer.encode_ordinary(prompt)
    found, names = page.true_credit(tokenizer, start, tokens), []
    for token in tokens:
        name = tokenizer.decode([token])
        names.append(name if name not in names else f"{name} 2")
    assert found.tolist() == pytest.approx([want.get(name, 0.0) for name in names])
    assert found.sum() == pytest.approx(toy.log_odds(prompt + completion) - toy.log_odds(prompt))

# ---------------------------------------------------------------------------------------------------------------------
# the top of the page

def rows_of(table):
    """The cells of a table's rows, as lists of text."""
    return [[cell.text.strip() for cell in line.content] for line in table.all("tr")]

@pytest.mark.parametrize("run", RUNS)
def test_the_table_is_that_of_eval_json(page_of, run):
    """Every measure that eval.py prints is there with its interval, before and after."""
    measures = json.loads(Path(run, "eval.json").read_text())["measures"]
    want = [["", *measures]]
    for key, label, form in ROWS:
        if any(key in column for column in measures.values()):
            cells = ["{0:{f}} [{1:{f}}, {2:{f}}]".format(*column[key], f=form) if key in column else "-"
                     for column in measures.values()]
            want.append([label.strip(), *cells])
    found = rows_of(page_of(run).all("table")[0])
    assert found[:len(want)] == want and len(want) > 5
    assert all("correlation" in label for label, *_ in found[len(want):])

@pytest.mark.parametrize("run", ["dpo", "adapter"])
def test_the_correlation_of_implicit_and_true_credit(page_of, run):
    """It is that of all tokens of the pairs shown, EOS included, with an interval around it. SFT has none."""
    x, y = [], []
    for card in page_of(run).all("article", cls="pair"):
        for text, _ in texts_of(card):
            notes = [NOTE.fullmatch(b["data-t"]) for b in text.all("b")]
            x += [float(said[10]) for said in notes]
            y += [float(said[13]) for said in notes]
    label, before, after = rows_of(page_of(run).all("table")[0])[-1]
    assert label.startswith("correlation") and before == "-"
    r, low, high = map(float, re.fullmatch(rf"{NUMBER} \[{NUMBER}, {NUMBER}\]", after).groups())
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.002) and low < r < high
    assert "correlation" not in page_of("out/toy/sft").text and "correlation" not in page_of("hostile").text

def test_the_verdict_compares_intervals():
    """A change within the intervals is none, and is not called one."""
    assert page.moved([0.5, 0.45, 0.55], [0.9, 0.88, 0.92]) == "rose from 0.500 to 0.900"
    assert page.moved([0.5, 0.45, 0.55], [0.4, 0.38, 0.42]) == "fell from 0.500 to 0.400"
    assert page.moved([0.5, 0.45, 0.55], [0.56, 0.51, 0.61]) == "hardly changed: 0.500 to 0.560"
    assert page.moved([0.5, 0.45, 0.55], [0.44, 0.39, 0.49]) == "hardly changed: 0.500 to 0.440"

@pytest.mark.parametrize("run", RUNS)
def test_the_verdict_says_the_measures(page_of, run):
    """Each number in it is one of eval.json, or a mean over the pairs shown."""
    verdicts = page_of(run).all("p", cls="verdict")
    measures = json.loads(Path(run, "eval.json").read_text())["measures"]
    after, said = measures["after"], verdicts[0].text
    assert len(verdicts) == 1
    for key, words in (("reward", f"{after.get('reward', [0])[0]:.3f}"), ("kl", f"{after.get('kl', [0])[0]:.2f} nats"),
                       ("whole", f"{after.get('whole', [0])[0]:.0%} of the sentences")):
        assert (key not in after) or words in said, said
    if "reward" not in after and "accuracy" in after:
        assert f"in {after['accuracy'][0]:.0%} of held-out pairs" in said
    cards = page_of(run).all("article", cls="pair")
    if cards and run != "kept":
        ends = [[float(facts["data-logratio"]) for _, facts in texts_of(card)] for card in cards]
        chosen, rejected = (np.mean([two[i] for two in ends]) for i in (0, 1))
        assert f"log pi(chosen) changed by {chosen:+.2f} nats" in said
        assert f"log pi(rejected) by {rejected:+.2f}" in said
        assert ("That the chosen ones fall is usual" in said) == (chosen < 0)

GET_ARGS = {"train_sft.py": train_sft.get_args, "train_pref.py": train_pref.get_args,
            "rlhf.train_ppo": train_ppo.get_args}

@pytest.mark.parametrize("run", RUNS)
def test_the_commands_can_be_pasted(page_of, run):
    """Parsed again, each gives the arguments of the run that it says, the SFT run first."""
    lines = page_of(run).all("pre")[0].text.split("\n")
    made, want = [], [run] if run == "out/toy/sft" else ["out/toy/sft", *(["reward"] if run == "ppo" else []), run]
    for line in lines:
        python, *words = shlex.split(line)
        assert python == "python"
        script, argv = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
        made.append(argv[argv.index("--out_dir") + 1])
        if script != "rlhf.train_reward":
            assert vars(GET_ARGS[script](argv)) == rundir.read_args(made[-1])["args"]
    assert made == want

def test_a_command_with_awkward_values_can_be_pasted():
    """A folder with a space and a quote, a list, a flag that is on; --resume would continue another run."""
    args = {"out_dir": "my 'run' $x", "lr": 1e-07, "several": [1, 0.5], "on": True, "off": False, "none": None,
            "resume": True}
    words = shlex.split(rundir.command_of({"script": "rlhf/train_ppo.py", "args": args}))
    assert words[:3] == ["python", "-m", "rlhf.train_ppo"]
    assert words[3:] == ["--out_dir", "my 'run' $x", "--lr", "1e-07", "--several", "1", "0.5", "--on"]

# ---------------------------------------------------------------------------------------------------------------------
# curves

@pytest.mark.parametrize("runs", [("dpo",), ("ppo",), ("out/toy/sft",), ("dpo", "simpo")], ids=" ".join)
def test_curves_have_the_values_of_the_log(page_of, runs):
    """All panels' metrics that the log has are drawn, for each run and split, with their values."""
    want = {}
    for run in runs:
        for row in csv.DictReader(open(f"{run}/log.csv")):
            name = (run, row["metric"], row["split"])
            want.setdefault(name, []).append([int(row["step"]), float(f"{float(row['value']):.6g}")])
    panels, drawn = dict(layout.PANELS), 0
    for figure in page_of(*runs).all("figure"):
        metrics = panels[figure.all("strong")[0].text]
        for line in figure.all("polyline"):
            *words, split = line["data-name"].split()
            run = words.pop(0) if len(runs) > 1 else runs[0]
            metric = next(m for m in metrics if m.endswith(words[0])) if words else metrics[0]
            assert split in line["class"] and len(words) == (len(metrics) > 1)
            assert json.loads(line["data-points"]) == want[run, metric, split]
            assert len(line["points"].split()) == len(want[run, metric, split])
            drawn += 1
    shown = {metric for metrics in panels.values() for metric in metrics}
    assert drawn == sum(metric in shown for _, metric, _ in want) > 1

def test_a_long_curve_is_thinned_and_keeps_its_ends_value():
    """10,000 updates would be a megabyte of points. The last one is what the run ended at."""
    points = [(step, float(step)) for step in range(1, 10_001)]
    kept = html.thinned(points)
    assert len(kept) == 400 and kept[-1] == points[-1] and kept == sorted(kept)
    assert html.thinned(points[:400]) == points[:400]

# ---------------------------------------------------------------------------------------------------------------------
# marks and keys

def test_flipped_pairs_are_marked(page_of):
    """They are exactly the pairs that --label_noise swapped in validation. Without noise there are none."""
    facts = rundir.read_args("dpo")
    rows = sampling.read_pairs(facts["pairs"])["val"]
    noisy = [dict(row) for row in rows]
    data.flip_labels(noisy, 0.25, facts["args"]["seed"])
    want = [row["chosen"] != before["chosen"] for row, before in zip(noisy, rows)]
    cards = page_of("dpo", flags=()).all("article", cls="pair")
    assert ["flipped" in card["data-marks"].split() for card in cards] == want and sum(want) == round(0.25 * len(rows))
    assert [layout.MARKS["flipped"] in card.all("h3")[0].text for card in cards] == want
    assert not any("flipped" in card["data-marks"] for card in page_of("simpo").all("article", cls="pair"))

@pytest.mark.parametrize("run", ["dpo", "kept", "hostile"])
def test_marks_and_keys_of_a_pair_follow_from_its_numbers(page_of, run):
    """The keys for sorting, and fell, against, agree and disagree. With --keep_all they are those of the last step."""
    names = set()
    for at, card in enumerate(page_of(run).all("article", cls="pair")):
        (chosen, of_chosen), (rejected, of_rejected) = texts_of(card)[-2:]
        c, r = float(of_chosen["data-logratio"]), float(of_rejected["data-logratio"])
        assert int(card["data-at"]) == at and card.all("h3")[0].text.startswith(f"pair {at + 1}")
        assert float(card["data-margin"]) == pytest.approx(BETAS[run] * (c - r), abs=2e-6)
        assert float(card["data-chosen"]) == pytest.approx(c, abs=2e-6)
        assert int(card["data-length"]) == len(chosen.all("b")) - len(rejected.all("b"))
        want = {name for name, holds in (("fell", c < 0), ("against", c < r)) if holds}
        rewards = [re.search(r"reward ([\d.]+)", facts.text) for facts in (of_chosen, of_rejected)]
        if run != "hostile":
            gap = float(rewards[0][1]) - float(rewards[1][1])
            want.add("agree" if gap * (c - r) > 0 else "disagree")
        else:
            assert rewards == [None, None]
        assert set(card["data-marks"].split()) - {"flipped"} == want
        names |= want
    assert len(names) > 1 or run == "hostile"    # every chosen one rose there

def test_the_rewards_below_a_pair_are_the_exact_ones(page_of):
    """Chosen is the one with the higher reward, unless the label was flipped."""
    for card, (prompt, *sides) in zip(page_of("dpo").all("article", cls="pair"), shown_pairs("dpo")):
        shown = [float(re.search(r"reward ([\d.]+)", facts.text)[1]) for _, facts in texts_of(card)]
        want = [toy.reward(TOKENIZER.decode(prompt + side)) for side in sides]
        assert shown == pytest.approx(want, abs=6e-4)
        assert (shown[0] < shown[1]) == ("flipped" in card["data-marks"])

@pytest.mark.parametrize("runs", [("dpo",), ("hostile",), ("adapter", "kept")], ids=" ".join)
def test_every_filter_that_is_offered_shows_some_pairs(page_of, runs):
    """A filter for a mark that no card has shows an empty page. A mark without a filter cannot be found."""
    offered = {option["value"] for select in page_of(*runs).all("select") if select["id"] == "filter"
               for option in select.all("option")}
    marked = {name for card in page_of(*runs).all("article", cls="pair") for name in card["data-marks"].split()}
    assert offered == marked | {""} and marked <= set(layout.MARKS)

def seen(*logratios):
    """A completion whose tokens have these log-ratios."""
    n = len(logratios)
    return page.Seen(["a"] * n, np.array(logratios), [""] * n, np.zeros(n), [""] * n, None)

def test_marks_and_filters_of_several_runs_are_those_of_the_first():
    """A page of two runs sorts and filters by one of them. Mixed, a filter would show pairs without its mark."""
    first = page.View("a", 5, True, 0.1, [(seen(-1.0, -1.0), seen(-1.5))], [], [])
    second = page.View("b", 5, True, 0.1, [(seen(1.0, 2.0), seen(0.5))], [], [])
    pair = page.Pair([1], [2, 2], [3], False)
    for views, marks in (([first, second], "fell against"), ([second, first], "")):
        tree = read_page(layout.pairs_section([pair], ["text"], views, 1.0))
        assert tree.all("article")[0]["data-marks"] == marks
        assert [option["value"] for option in tree.all("select")[1].all("option")] == ["", *sorted(marks.split())]

@pytest.mark.parametrize("loss, beta, end, want", [
    ("dpo", 0.1, None, 0.1), ("dpo", 0.1, 0.4, 0.4), ("dpo", 0.1, 0, 1.0), ("simpo", 2.0, None, 1.0),
    ("slic", None, None, 1.0), (None, 0.05, None, 0.05)])
def test_the_beta_of_implicit_rewards_is_the_last_one(loss, beta, end, want):
    """The weights were trained up to it. Where there is no such beta, colors are on a scale in nats."""
    args = {"loss": loss, "beta": beta, "beta_end": end, "max_steps": 10}
    assert page.implicit_beta({"args": args}) == pytest.approx(want)

# ---------------------------------------------------------------------------------------------------------------------
# one file that shows text as text

# what a page is made of; attributes that load or run something are in none of them
PLAIN = "head title style body script details summary pre small figcaption br h1 h2 h3 h4 strong figure output " \
        "table tr th td label"
ELEMENTS = dict.fromkeys(PLAIN.split(), "") | {
    "html": "lang", "meta": "charset http-equiv content name", "main": "class",
    "article": "class data-at data-margin data-chosen data-length data-marks", "section": "data-from data-to",
    "select": "id", "option": "value", "input": "type id min max value data-names aria-label", "span": "class id",
    "div": "class hidden data-logratio data-logp", "p": "class data-name", "b": "class tabindex data-t",
    "svg": "class viewbox aria-hidden data-first data-last", "path": "class d hidden",
    "polyline": "class points data-name data-points", "circle": "class cx cy r", "text": "x y text-anchor"}

@pytest.mark.parametrize("runs", [*((run,) for run in RUNS), ("dpo", "kept", "simpo")], ids=" ".join)
def test_a_page_requests_nothing_and_runs_only_its_own_script(page_of, text_of, runs):
    """
    No element loads anything, and the policy (CSP) forbids it too. The policy names the hash of the script in the file:
    with another one the page would open without its controls.
    """
    tree = page_of(*runs)
    for element in tree.all():
        assert element.name in ELEMENTS, element.name
        assert element.attributes.keys() <= set(ELEMENTS[element.name].split()), (element.name, element.attributes)
    style, (script,) = "".join(part.text for part in tree.all("style")), tree.all("script")
    assert "url(" not in style and "@import" not in style and "\\" not in style
    policy = [m["content"] for m in tree.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    rules = dict(rule.split(None, 1) for rule in policy[0].split(";"))
    assert rules == {"default-src": "'none'", "style-src": "'unsafe-inline'", "script-src": f"'sha256-{digest}'",
                     "base-uri": "'none'", "form-action": "'none'"}
    first = text_of(*runs).index("<meta http-equiv")    # a policy holds only for what comes after it
    assert first < text_of(*runs).index("<style") and first < text_of(*runs).index("<script")

def test_a_page_is_the_same_bytes_when_written_twice(text_of):
    """A page that changes without a change of its run cannot be compared, nor kept under version control."""
    assert text_of("kept") == text_of("kept", flags=[*FEW, "--seed", "0"])

SHOWN = {    # what stands on the page, by hand; the other texts stand there as they are
    "order": "a\u25afb\u25afc\u061c", "control": "a\u25afb\u25afc\u25af\u25af\u25af", "lines": "a\nb\n\n c\u25afd",
}
PIECES = {    # in a completion
    "emoji": "\u25ab\u25ab\u25ab\U0001f600 \u25ab\u25ab\u25ab\U0001f1e9\u25ab\u25ab\u25ab\U0001f1ea",
    "lines": "a\u21b5\nb\u21b5\n\u21b5\n c\u25afd", "arabic": "".join(f"\u25ab{c}" for c in HOSTILE["arabic"]),
    "order": "a\u25ab\u25ab\u25afb\u25ab\u25ab\u25afc\u25ab\u061c",
    "control": "a\u25afb\u25afc\u25af\u25ab\u25af\u25af",
}

def test_all_text_of_the_data_is_text(page_of):
    """
    Elements, entities, comments and quotes in prompts and completions stand on the page as they are. Line breaks are
    marked, a character of several tokens stands at its last, and nothing reorders the page.
    """
    seen = set()
    for card in page_of("hostile", flags=()).all("article", cls="pair"):
        prompt = card.all("p", cls="prompt")[0].text
        kind = next(kind for kind, text in HOSTILE.items() if SHOWN.get(kind, text) == re.sub(r"^\d+", "", prompt))
        for text, side in zip(card.all("p", cls="text"), "cr"):
            assert text.text == side + PIECES.get(kind, HOSTILE[kind]) + "<EOS>"
        seen.add(kind)
    assert seen == set(HOSTILE)

def test_an_empty_first_line_of_a_prompt_is_left_out():
    """Dialogues begin with two line breaks. Those between turns stay."""
    assert read_page(layout.prompt("\n\nHuman: a\n\nb <i>\n")).all("p")[0].text == "Human: a\n\nb <i>"

@pytest.mark.slow
def test_the_main_jobs_page_is_at_most_2_mb(main_sft, pageless, tmp_path, monkeypatch):
    """A mail takes it, and a browser opens it at once. The main job's texts are longer than those of the runs here."""
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "examples", ALL_EXAMPLES)
        shutil.copytree(main_sft, "out/toy/sft")
        train_pref.main(["--loss", "dpo"])
        texts = []
        for _ in range(2):
            texts.append(Path(pageless(["--run", "out/toy/dpo"])).read_bytes())
    assert 1e6 < len(texts[0]) <= 2e6 and texts[0] == texts[1]
    cards = read_page(texts[0].decode()).all("article")
    assert [card["class"] for card in cards] == ["pair"] * 64 + ["sample"] * 32

# ---------------------------------------------------------------------------------------------------------------------
# kinds of runs

def test_a_run_without_a_reference_has_no_colors_and_no_log_ratios(page_of):
    """SFT from random weights has nothing to compare with. The true credit of its tokens is shown all the same."""
    tree = page_of("out/toy/sft")
    assert not tree.all("article", cls="pair") and len(tree.all("article", cls="sample")) == 4
    for text, facts in texts_of(tree):
        assert text["data-name"] == "after" and float(facts["data-logratio"]) == 0
        assert facts.text.startswith("log pi -") and "log-ratio" not in facts.text
        assert all(color_step(b, "p", "n") == 0 for b in text.all("b"))
        assert all("reference" not in b["data-t"] and "true credit" in b["data-t"] for b in text.all("b"))

def test_a_ppo_run_has_samples_and_no_pairs(page_of):
    """It was trained on no pairs. The samples before and after carry the colors."""
    tree = page_of("ppo")
    assert not tree.all("article", cls="pair") and "held-out pairs" not in tree.text and not tree.all("select")
    assert any(color_step(b, "p", "n") for b in tree.all("b") if b.attributes.get("data-t"))

@pytest.mark.parametrize("run", [name for name in RUNS if name not in ("hostile", "kept")])
def test_samples_are_those_of_eval_json(page_of, run):
    """Prompt, text before and after, and their rewards. Sampled again, they would not be what the table measures."""
    records = json.loads(Path(run, "eval.json").read_text())["samples"]
    cards = page_of(run).all("article", cls="sample")
    assert len(cards) == 4
    for card, record in zip(cards, records):
        assert card.all("p", cls="prompt")[0].text == record["prompt"]
        for text, facts in texts_of(card):
            name = text["data-name"]
            assert plain(text) == plain(record[name])
            assert f"reward {record['rewards'][name]['reward']:.3f}" in facts.text

def test_kept_steps_are_views_of_a_slider(page_of):
    """
    Each step is shown at one position of the slider, and its samples are its own. Before training there is no change;
    the best step has the samples of eval.json.
    """
    tree, best = page_of("kept"), json.loads(Path("kept/result.json").read_text())["best_step"]
    (slider,) = tree.all("input")
    assert slider["data-names"] == "0 2 4" and (slider["min"], slider["max"], slider["value"]) == ("0", "2", "2")
    for card in tree.all("article"):
        views = card.all("section")
        assert [(view["data-from"], view["data-to"]) for view in views] == [("0", "0"), ("1", "1"), ("2", "2")]
        titles = [f"kept, step {step}" + " (best)" * (int(step) == best) for step in STEPS["kept"]]
        assert [view.all("h4")[0].text for view in views] == titles
        assert all(float(facts["data-logratio"]) == 0 for _, facts in texts_of(views[0]))
        assert all(float(facts["data-logratio"]) != 0 for _, facts in texts_of(views[1])[:1])
    records = json.loads(Path("kept/eval.json").read_text())["samples"][:4]
    prompts = [TOKENIZER.encode_ordinary(record["prompt"]) for record in records]
    for number, step in enumerate(STEPS["kept"]):
        want = [record["after"] for record in records]
        if int(step) != best:
            drawn = sampling.sample_completions(models_of("kept", step)[0], TOKENIZER, prompts, 52, seed=0)
            want = [TOKENIZER.decode(tokens) for tokens in drawn]
        shown = [card.all("section")[number].all("p", cls="text")[1] for card in tree.all("article", cls="sample")]
        assert list(map(plain, shown)) == [plain(text.replace("<|endoftext|>", "")) for text in want]

def test_the_views_of_several_runs_share_the_slider():
    """A run that kept other steps shows the last one up to the slider's; a run that kept none is always shown."""
    views = [page.View(run, step, False, 1.0, [], [], []) for run, step in
             (("a", 0), ("a", 10), ("a", 30), ("b", 10), ("b", 20), ("c", 7))]
    assert [layout.place(view, views) for view in views] == [    # steps 0 7 10 20 30
        {"data_from": 0, "data_to": 1}, {"data_from": 2, "data_to": 3}, {"data_from": 4, "data_to": 4},
        {"data_from": 0, "data_to": 2}, {"data_from": 3, "data_to": 4}, {}]

def test_many_kept_steps_are_thinned_to_the_first_the_last_and_the_best(tmp_path):
    """A run of 240 updates with a step each would be 100 MB."""
    for step in range(0, 1000, 10):
        (tmp_path / f"step-{step}").mkdir()
    (tmp_path / "step-old").mkdir()
    steps = page.kept_steps(tmp_path, 470)
    assert steps[0] == 0 and steps[-1] == 990 and 470 in steps and len(steps) <= page.MOST_STEPS
    assert steps == sorted(set(steps)) and max(np.diff(steps)) <= 120
    assert page.kept_steps(tmp_path / "step-0", 0) == []

def test_runs_side_by_side(page_of):
    """Each pair and prompt has a column for each run, in their order; the table has the shared reference once."""
    tree = page_of("simpo", "dpo", "adapter")
    assert rows_of(tree.all("table")[0])[0] == ["", "out/toy/sft", "simpo", "dpo", "adapter"]
    assert [p.text.split(":")[0] for p in tree.all("p", cls="verdict")] == ["simpo", "dpo", "adapter"]
    for card in tree.all("article"):
        assert [h4.text.split(",")[0] for h4 in card.all("h4")] == ["simpo", "dpo", "adapter"]
    alone = page_of("dpo", "simpo").all("article", cls="pair")    # these have dpo's flipped labels
    for card, sides in zip(alone, shown_pairs("dpo")):
        shown = texts_of(card)[:2]
        assert [len(text.all("b")) for text, _ in shown] == [len(side) for side in sides[1:]]

@pytest.mark.parametrize("runs", [("out/toy/sft", "dpo"), ("ppo", "dpo"), ("dpo", "ppo", "out/toy/sft")], ids=" ".join)
def test_runs_of_different_kinds_side_by_side(page_of, runs):
    """SFT, DPO and PPO have samples of the same prompts. Pairs are shown if the first run was trained on them."""
    tree = page_of(*runs)
    assert len(tree.all("article", cls="pair")) == (8 if runs[0] == "dpo" else 0)
    for card in tree.all("article", cls="sample"):
        assert [h4.text.split(",")[0] for h4 in card.all("h4")] == list(runs)
        names = [text["data-name"] for text, _ in texts_of(card)]
        assert names == [name for run in runs for name in ("before", "after")[run == "out/toy/sft":]]

def test_a_run_may_have_any_name(copied, pageless):
    """A folder's name is text too: in the title, the headings, the table, the curves and the commands."""
    name = """a <b>&amp;"'c"""
    copied("dpo", name)
    copied("simpo")
    tree = read_page(Path(pageless(["--run", name, "simpo", *FEW])).read_text(encoding="utf-8"))
    assert tree.all("title")[0].text == tree.all("h1")[0].text == f"{name}, simpo"
    assert rows_of(tree.all("table")[0])[0] == ["", "out/toy/sft", name, "simpo"]
    assert tree.all("article")[0].all("h4")[0].text.startswith(name)
    assert any(line["data-name"].startswith(name) for line in tree.all("polyline", having="data-name"))

@pytest.fixture
def copied(here, tmp_path, monkeypatch):
    """copied(run): a copy of a run that may be changed, in a folder where the paths in its args.json hold too."""
    (tmp_path / "out").symlink_to(here / "out")
    (tmp_path / "hostile.jsonl").symlink_to(here / "hostile.jsonl")
    (tmp_path / "reward").symlink_to(here / "reward")
    monkeypatch.chdir(tmp_path)
    def copy(run, name=None):
        return Path(shutil.copytree(here / run, tmp_path / (name or run)))
    return copy

def change_eval(run, change):
    """Changes the content of a run's eval.json by a function."""
    path = run / "eval.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

def without_tokens(content):
    for record in content["samples"]:
        del record["tokens"]

def test_an_evaluation_from_before_the_page_is_encoded_again(copied, pageless, page_of):
    """Its texts have no tokens. The page has the same texts, without EOS, which they do not tell."""
    old = copied("dpo")
    change_eval(old, without_tokens)
    tree = read_page(Path(pageless(["--run", "dpo", *FEW])).read_text(encoding="utf-8"))
    new = page_of("dpo")
    for card, other in zip(tree.all("article", cls="sample"), new.all("article", cls="sample")):
        for text, known in zip(card.all("p", cls="text"), other.all("p", cls="text")):
            assert plain(text) == plain(known)

def test_a_text_that_is_longer_in_tokens_when_encoded_again_is_cut(copied, pageless):
    """Broken characters become three bytes each, more than the model has room for."""
    old = copied("dpo")
    change_eval(old, lambda content: (without_tokens(content), content["samples"][0].update(after="\ufffd" * 30)))
    tree = read_page(Path(pageless(["--run", "dpo", *FEW])).read_text(encoding="utf-8"))
    prompt = TOKENIZER.encode_ordinary(tree.all("article", cls="sample")[0].all("p", cls="prompt")[0].text)
    assert len(texts_of(tree.all("article", cls="sample")[0])[1][0].all("b")) == 64 - len(prompt)

def test_the_weights_of_one_step_are_a_run_too(copied, pageless):
    """eval.py accepts the folder of a step. Its page names its own step, not the best one."""
    copied("kept")
    copied("simpo")
    eval.main(["--run", "kept/step-2", "--n_prompts", "12", "--n_samples", "2", "--show", "0"])
    tree = read_page(Path(pageless(["--run", "kept/step-2", "simpo", *FEW])).read_text())
    assert "kept/step-2, step 2" in tree.all("h4")[0].text

def test_a_measure_that_is_not_a_number_is_left_out(copied, pageless):
    """NaN is null in JSON: a KL of an infinite log-prob, for example. The rest is shown."""
    change_eval(copied("dpo"), lambda content: content["measures"]["after"].update(kl=[None] * 3, reward=[None] * 3))
    tree = read_page(Path(pageless(["--run", "dpo", *FEW])).read_text(encoding="utf-8"))
    rows = {label: cells for label, *cells in rows_of(tree.all("table")[0])}
    assert rows["reward"][1] == "-" != rows["reward"][0] and "the KL" not in tree.all("p", cls="verdict")[0].text

def test_no_pairs_and_no_samples(pageless, tmp_path):
    """Both counts may be 0: the page is the table and the curves."""
    path = pageless(["--run", "dpo", "--out", str(tmp_path / "short.html"), "--n_pairs", "0", "--n_samples", "0"])
    tree = read_page(Path(path).read_text(encoding="utf-8"))
    assert not tree.all("article") and tree.all("figure") and tree.all("table")
    assert Path(path) == tmp_path / "short.html"

def test_the_page_lies_in_the_first_runs_folder(copied, pageless):
    """Where else would one look for it? A second run's folder is left alone."""
    first, second = copied("simpo"), copied("dpo")
    assert pageless(["--run", "simpo", "dpo", *FEW]) == "simpo/page.html"
    assert (first / "page.html").is_file() and not (second / "page.html").exists()

# ---------------------------------------------------------------------------------------------------------------------
# wrong input

def test_a_run_that_was_not_evaluated_is_told_how(copied, refused):
    """The measures and samples of a page are those of eval.json."""
    (copied("dpo") / "eval.json").unlink()
    refused(["--run", "dpo"], "dpo/eval.json", "python eval.py --run dpo")

def test_a_folder_that_is_no_run_is_refused(here, refused, tmp_path):
    """A typo, an empty folder, and a file."""
    refused(["--run", "gone"], "gone", "not a run")
    refused(["--run", tmp_path], str(tmp_path), "not a run")
    refused(["--run", "hostile.jsonl"], "hostile.jsonl", "not a run")
    refused(["--run", "dpo", "gone"], "gone", "not a run")
    refused([], "--run")

def test_a_reward_model_has_no_page(refused):
    """It has no policy. "evaluate the run first" would send to eval.py, which refuses it too."""
    assert "eval.py" not in refused(["--run", "reward"], "reward", "reward model")

def test_runs_on_different_data_are_refused(refused):
    """Their pairs and prompts are different texts."""
    refused(["--run", "dpo", "hostile"], "hostile", "--data")

def test_runs_that_were_evaluated_on_different_prompts_are_refused(copied, refused):
    """A sample would stand below another one's prompt."""
    copied("dpo")
    change_eval(copied("simpo"), lambda content: content["samples"].reverse())
    refused(["--run", "dpo", "simpo", *FEW], "simpo", "other prompts", "python eval.py --run dpo simpo")

def test_a_run_that_was_evaluated_on_fewer_prompts_is_refused(copied, refused):
    """It has samples of 2 prompts where the other has 12."""
    copied("dpo")
    change_eval(copied("simpo"), lambda content: content.update(samples=content["samples"][:2]))
    refused(["--run", "dpo", "simpo", *FEW], "simpo", "other prompts")

def test_an_output_folder_that_is_missing_is_named(refused, tmp_path):
    """Before the models are read, which may take minutes."""
    refused(["--run", "dpo", "--out", tmp_path / "gone" / "page.html"], "gone", "no such folder")
    refused(["--run", "dpo", "--out", tmp_path], str(tmp_path), "is a folder")

DAMAGED = {"half": lambda text: text[:len(text) // 2], "empty": lambda text: "", "object": lambda text: "{}",
           "list": lambda text: "[1, 2]", "no samples": lambda text: json.dumps(json.loads(text) | {"samples": []}),
           "no measures": lambda text: json.dumps(json.loads(text) | {"measures": {}}),
           "no prompts": lambda text: text.replace('"prompt"', '"Prompt"'),
           "tokens": lambda text: re.sub(r'("after": ")(\d)', r"\1x\2", text),
           "large tokens": lambda text: re.sub(r'("after": ")(\d)', r"\g<1>9999\2", text)}

@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_evaluation_is_named(copied, refused, damage):
    """A file that was cut or written by hand. A traceback would not say which file to write again."""
    path = copied("dpo") / "eval.json"
    path.write_text(DAMAGED[damage](path.read_text()))
    refused(["--run", "dpo", *FEW], "dpo/eval.json")

@pytest.mark.parametrize("file, text", [("log.csv", "step,split,metric,value\n1,train,loss\n"), ("args.json", "{"),
                                        ("args.json", "{}"), ("result.json", "["), ("result.json", "{}"),
                                        ("log.csv", None), ("model.safetensors", "x"), ("model.safetensors", None)])
def test_other_damaged_files_are_named(copied, refused, file, text):
    """Likewise: one line with the name of the file."""
    path = copied("dpo") / file
    path.unlink() if text is None else path.write_text(text)
    refused(["--run", "dpo", *FEW], "dpo", file)

def test_pairs_that_are_gone_are_named(copied, refused):
    """The file lies in the folder of the SFT run, which somebody may have cleaned up."""
    path = copied("dpo") / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pairs": "gone.jsonl"}))
    refused(["--run", "dpo", *FEW], "gone.jsonl")

@pytest.mark.parametrize("flags", [["--n_pairs", "-1"], ["--n_samples", "x"], ["--batch_size", "0"], ["--out", ""],
                                   ["--loss", "dpo"], ["--device", "nowhere"]])
def test_wrong_flags_are_refused(refused, flags):
    """One line with the flag."""
    refused(["--run", "dpo", *flags], flags[0] if flags[0] != "--device" else "nowhere")
