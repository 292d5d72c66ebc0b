"""
A loss added by a user: one function, a flag for every kind of hyperparameter, and a one-line error for each
mistake.
"""
import csv
import inspect
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import losses
import train_pref
from losses import LOSSES, Pairs, register
from study import bandit, places, table
from support.registry import number, try_out

@pytest.fixture(autouse=True)
def as_before():
    """Remove the losses that a test registers."""
    before = dict(LOSSES)
    yield
    LOSSES.clear()
    LOSSES.update(before)

def answer(pairs, scale=1.0):
    """What a loss returns: losses, chosen_rewards, rejected_rewards."""
    gap = pairs.policy_chosen_logps - pairs.policy_rejected_logps
    return F.softplus(-scale * gap), gap.detach(), -gap.detach()

def hparams(*argv):
    """The hyperparameters that train_pref passes to the loss `mine`."""
    args = train_pref.get_args(["--loss", "mine", *argv])
    return {h: getattr(args, h) for h in LOSSES["mine"].hparams}

def refused(capsys, *argv):
    """The one line of the error message."""
    with pytest.raises(SystemExit) as end:
        train_pref.get_args(["--loss", "mine", *argv])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1, err
    return err

# ---------------------------------------------------------------------------------------------------------------------
# hyperparameters and their flags

def test_every_kind_of_hyperparameter_is_a_flag_and_keeps_its_default():
    """
    If the type came from the default alone, a default of 0 would refuse 0.5, a bool could not be turned off, and
    None would have no type.
    """
    @register(needs_ref=False)
    def mine(pairs, *, whole=0, power=0.5, flip=True, quiet=False, cap=None, name: str = None,
             limit: float | None = None, k: int = 4, beta: float = 1, kind="50% a"):
        """Mine."""
        return answer(pairs)
    defaults = dict(whole=0, power=0.5, flip=True, quiet=False, cap=None, name=None,
                    limit=None, k=4, beta=1, kind="50% a")
    assert hparams() == defaults == LOSSES["mine"].hparams
    given = hparams("--whole", "0.5", "--power", "2", "--no-flip", "--quiet", "--cap", "1.5", "--name", "7",
                    "--limit", "-2", "--k", "3", "--beta", "0.25", "--kind", "b")
    assert given == dict(whole=0.5, power=2.0, flip=False, quiet=True, cap=1.5, name="7",
                         limit=-2.0, k=3, beta=0.25, kind="b")
    assert type(hparams("--whole", "3")["whole"]) is int and type(given["power"]) is float

def test_the_help_shows_defaults_with_a_percent_sign(capsys):
    """argparse reads % in a help text as a placeholder, and --help would end with a traceback for every loss."""
    @register(needs_ref=False)
    def mine(pairs, *, kind="50% a", flip=True):
        return answer(pairs)
    with pytest.raises(SystemExit) as end:
        train_pref.get_args(["--help"])
    assert end.value.code == 0 and "for mine (default: 50% a)" in " ".join(capsys.readouterr().out.split())

def test_a_whole_number_is_refused_a_fraction_only_where_its_annotation_says_so(capsys):
    """k: int = 4 counts something. 4 without an annotation may be a weight."""
    @register(needs_ref=False)
    def mine(pairs, *, k: int = 4):
        return answer(pairs)
    assert "--k" in refused(capsys, "--k", "0.5")

@pytest.mark.parametrize("argv", [("--power", "0"), ("--power", "2"), ("--no-flip",), ("--flip",)], ids=" ".join)
def test_a_flag_of_another_loss_is_refused_also_when_it_is_0_or_off(argv, capsys):
    """0 == False, and both may be taken for a flag that was not given. The run would then ignore the flag."""
    @register(needs_ref=False)
    def mine(pairs):
        return answer(pairs)
    @register(needs_ref=False)
    def other(pairs, *, power=1.0, flip=True):
        return answer(pairs)
    assert "no effect on --loss mine, which takes no hyperparameter" in refused(capsys, *argv)

def test_losses_that_share_a_name_share_its_flag(capsys):
    """
    With the type of the first loss, --alpha 0.5 would be refused for the second. A word and a number cannot share a
    flag.
    """
    @register(needs_ref=False)
    def mine(pairs, *, alpha=0, share=1):
        return answer(pairs)
    @register(needs_ref=False)
    def other(pairs, *, share: int = 2):
        return answer(pairs)
    assert hparams("--alpha", "0.25") == {"alpha": 0.25, "share": 1} and hparams("--share", "0.5")["share"] == 0.5
    @register(needs_ref=False)
    def third(pairs, *, alpha="none"):
        return answer(pairs)
    err = refused(capsys)
    assert "--alpha has two types" in err and "str for third" in err and "float for" in err

@pytest.mark.parametrize("name", [
    "lr", "seed", "loss", "adapter", "label_noise", "reward",
    "help", "beta_end", "sft_weight", "save", "show", "autocast"])
def test_a_hyperparameter_with_the_name_of_a_flag_is_refused(name, capsys):
    """argparse ends with a traceback. A name that only the training loop uses would be passed to the loop."""
    exec(f"def mine(pairs, *, {name}=1.0):\n    return answer(pairs)", made := {"answer": answer})
    register(needs_ref=False)(made["mine"])
    err = refused(capsys)
    assert "loss mine" in err and f"hyperparameter {name} " in err and "rename" in err

@pytest.mark.parametrize("name", ["temperature", "run", "pairs_", "show_"])
def test_other_names_are_free(name):
    """Only the names of train_pref.py's flags are taken."""
    exec(f"def mine(pairs, *, {name}=1.0):\n    return answer(pairs)", made := {"answer": answer})
    register(needs_ref=False)(made["mine"])
    assert hparams(f"--{name}", "3") == {name: 3.0}

def test_the_example_of_the_page_is_a_loss():
    """Users copy it from docs/new-loss.md. It must train and have the flags that the page names."""
    page = (Path(__file__).parent.parent / "docs" / "new-loss.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], made := dict(vars(losses)))
    try_out("mine", LOSSES["mine"].hparams, Pairs)
    assert hparams("--margin", "1") == {"beta": 0.1, "margin": 1.0} and "L = " in made["mine"].__doc__
    arguments = {p for p in inspect.signature(register).parameters if p != "fn"}
    assert all(f"\n| `{p}` |" in page for p in arguments)

# ---------------------------------------------------------------------------------------------------------------------
# mistakes in a loss

def without_parentheses():
    @register
    def mine(pairs):
        return answer(pairs)

def without_needs_ref():
    @register()
    def mine(pairs):
        return answer(pairs)

def a_word_for_needs_ref():
    @register("needs_ref")
    def mine(pairs):
        return answer(pairs)

def without_a_star():
    @register(needs_ref=False)
    def mine(pairs, beta=0.1):
        return answer(pairs)

def without_a_default():
    @register(needs_ref=False)
    def mine(pairs, *, beta):
        return answer(pairs)

def without_pairs():
    @register(needs_ref=False)
    def mine(*, beta=0.1):
        return answer(beta)

def with_any_keywords():
    @register(needs_ref=False)
    def mine(pairs, **beta):
        return answer(pairs)

def registered_twice():
    @register(needs_ref=False)
    def dpo(pairs):
        return answer(pairs)

def a_list():
    @register(needs_ref=False)
    def mine(pairs, *, betas=[1, 2]):    # noqa: B006
        return answer(pairs)

def a_tensor():
    @register(needs_ref=False)
    def mine(pairs, *, betas=torch.ones(2, 2)):    # noqa: B008
        return answer(pairs)

def an_annotation_with_another_default():
    @register(needs_ref=False)
    def mine(pairs, *, k: int = 0.5):
        return answer(pairs)

def an_annotation_that_is_no_type_of_a_flag():
    @register(needs_ref=False)
    def mine(pairs, *, betas: list[int] = None):
        return answer(pairs)

@pytest.mark.parametrize("wrong, words", [
    (without_parentheses, "@register(needs_ref=True)"),
    (without_needs_ref, "@register(needs_ref=True)"),
    (a_word_for_needs_ref, "@register(needs_ref=True)"),
    (without_a_star, "beta does not stand behind a star; write def mine(pairs, *,"),
    (without_a_default, "beta has no default; write def mine(pairs, *,"),
    (without_pairs, "write def mine(pairs, *,"),
    (with_any_keywords, "write def mine(pairs, *,"),
    (registered_twice, "loss dpo: there is a loss of this name already"),
    (a_list, "betas, a list, cannot be a flag"),
    (a_tensor, "betas, a Tensor, cannot be a flag"),
    (an_annotation_with_another_default, "k, a float, cannot be a flag"),
    (an_annotation_that_is_no_type_of_a_flag, "betas, a NoneType, cannot be a flag"),
], ids=lambda x: getattr(x, "__name__", ""))
def test_what_register_refuses_it_says_in_one_line_with_file_line_and_remedy(wrong, words):
    """
    Without the star a hyperparameter has no flag and silently keeps its default. The other mistakes would end in
    tracebacks from inspect or argparse.
    """
    before = dict(LOSSES)
    with pytest.raises(ValueError) as e:
        wrong()
    assert words in str(e.value) and "\n" not in str(e.value) and str(e.value).startswith("test_new_loss.py, line ")
    assert LOSSES == before

def test_a_script_shows_that_line_and_no_traceback(monkeypatch, capsys):
    """losses.py is imported before main runs, so main cannot catch the error."""
    class Broken:
        def __getattr__(self, name):
            raise ValueError("losses.py, line 9, loss mine: write it so")
    monkeypatch.setitem(sys.modules, "losses", Broken())
    with pytest.raises(SystemExit) as end:
        runpy.run_path(train_pref.__file__)
    assert end.value.code == "error: losses.py, line 9, loss mine: write it so"    # Python prints it and exits with 1

def a_mean(pairs):
    losses, *rewards = answer(pairs)
    return losses.mean(), *rewards

def kept_dimension(pairs):
    losses, *rewards = answer(pairs)
    return losses.mean(0, keepdim=True), *rewards

def one_tensor(pairs):
    return answer(pairs)[0]

def two_tensors(pairs):
    return answer(pairs)[:2]

def a_number(pairs):
    losses, *rewards = answer(pairs)
    return losses.mean().item(), *rewards

def nothing(pairs):
    answer(pairs)

def rewards_with_a_gradient(pairs):
    losses, *_ = answer(pairs)
    return losses, pairs.policy_chosen_logps, pairs.policy_rejected_logps

def detached(pairs):
    losses, *rewards = answer(pairs)
    return losses.detach(), *rewards

def the_reference_unasked(pairs):
    return F.softplus(-pairs.chosen_logratios), pairs.ref_chosen_logps, pairs.ref_chosen_logps

def the_kl_unasked(pairs):
    return answer(pairs)[0] + pairs.kl_logratios.mean(), *answer(pairs)[1:]

def the_gaps_unasked(pairs):
    return answer(pairs)[0] - pairs.reward_gaps, *answer(pairs)[1:]

@pytest.mark.parametrize("wrong, words", [
    (a_mean, "returns the shapes [], [2], [2]"),
    (kept_dimension, "the shapes [1], [2], [2]"),
    (one_tensor, "the shapes [2] for 2 pairs"),
    (two_tensors, "the shapes [2], [2] for"),
    (a_number, "the shapes float, [2]"),
    (nothing, "the shapes NoneType for"),
    (rewards_with_a_gradient, "return them with .detach()"),
    (detached, "its losses have no gradient"),
    (the_reference_unasked, "unless needs_ref=True"),
    (the_kl_unasked, "unless needs_kl=True"),
    (the_gaps_unasked, "unless needs_gap=True"),
], ids=lambda x: getattr(x, "__name__", ""))
def test_what_a_loss_returns_is_looked_at_before_a_run_begins(wrong, words, capsys, in_tmp, monkeypatch):
    """
    A mean trains most runs correctly, but not aot or --sft_weight. Rewards with a gradient keep every batch's graph
    in memory.
    """
    monkeypatch.setattr(train_pref.sources, "check_source", lambda *args, **more: pytest.fail("the run has begun"))
    LOSSES["mine"] = LOSSES[register(needs_ref=False)(wrong).__name__]
    with pytest.raises(SystemExit) as end:
        train_pref.main(["--loss", "mine"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and "--loss mine" in err and words in err
    assert not Path("out").exists()

def test_a_bug_inside_a_loss_keeps_its_traceback():
    """The author needs the line in the function. Only fields that Pairs leaves out get an explanation."""
    @register(needs_ref=False)
    def mine(pairs):
        return answer(pairs, scale="2")
    with pytest.raises(TypeError):
        try_out("mine", {}, Pairs)

@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes_the_trial(name):
    """The trial precedes every run, so a loss that it refuses could not be trained."""
    try_out(name, LOSSES[name].hparams, Pairs)

# ---------------------------------------------------------------------------------------------------------------------
# the study and the tables

def only(monkeypatch, fn, **facts):
    LOSSES.clear()
    register(**facts)(fn)

def test_a_new_loss_has_a_row_in_the_table_whatever_its_docstring(monkeypatch):
    """
    The table finds formula and source in the docstring. A docstring without them once stopped the table of all
    losses.
    """
    def mine(pairs, *, kind="a|b"):
        return answer(pairs)
    only(monkeypatch, mine, needs_ref=False)
    assert table.losses_table().splitlines()[2] == "| `mine` |  |  | no | `kind` a\\|b |"
    assert table.behavior_table().splitlines()[2] == "| `mine` |  |  | none |"
    mine.__doc__ = """Mine.

        L = |c - r|
    """
    assert table.losses_table().splitlines()[2].startswith("| `mine` | `\\|c - r\\|` |  | no |")

@pytest.mark.parametrize("hparams", [{"beta": 0.1}, {"scale": 2.0}, {}], ids=str)
def test_the_exact_world_takes_a_new_loss_with_any_hyperparameters(hparams, monkeypatch):
    """The study sets beta itself. A loss without beta must keep its defaults, and one with needs_kl must get the KL."""
    signature = "".join(f", {h}={v}" for h, v in hparams.items())
    if hparams:
        signature = ", *" + signature
    source = f"def mine(pairs{signature}):\n    return answer(pairs, 1 + pairs.kl_logratios.mean())"
    exec(source, made := {"answer": answer})
    only(monkeypatch, made["mine"], needs_ref=False, needs_kl=True)
    row, = bandit.rows()
    assert row["settings"] == ("beta=1.0" if "beta" in hparams else "") and row["below the frontier"] > -1e-4

def test_a_loss_without_a_minimum_ends_somewhere_in_the_exact_world(monkeypatch):
    """A line search on it goes to infinity, and a comparison of NaN with the frontier is always false."""
    def mine(pairs):
        gap = pairs.policy_chosen_logps - pairs.policy_rejected_logps
        return -gap.exp(), gap.detach(), gap.detach()
    only(monkeypatch, mine, needs_ref=False)
    row, = bandit.rows()
    assert row["below the frontier"] > -1e-4 and row["kl"] > 0

@pytest.mark.usefixtures("painted")
def test_the_bandit_overwrites_the_results_only_with_update(monkeypatch, in_tmp):
    """
    study/results and study/figures are under version control and in the README. A run with another beta must not
    change them.
    """
    numbers = {"reward": 0.5, "kl": 0.25, "below the frontier": 0.0, "unseen before": 0.5, "unseen after": 0.5}
    row = {"loss": "dpo", "settings": "beta=1.0"} | numbers
    monkeypatch.setattr(bandit, "rows", lambda seed, beta: [row])
    monkeypatch.setattr(places, "RESULTS", in_tmp / "study" / "results")
    monkeypatch.setattr(places, "FIGURES", in_tmp / "study" / "figures")
    bandit.main([])
    with open("out/bandit/bandit.csv", newline="") as f:
        assert [r["kl"] for r in csv.DictReader(f)] == ["0.25"]
    assert Path("out/bandit/bandit.png").stat().st_size > 10_000 and not (in_tmp / "study").exists()
    bandit.main(["--update"])
    assert (in_tmp / "study/results/bandit.csv").exists() and (in_tmp / "study/figures/bandit.png").exists()

def test_a_number_of_a_flag_is_whole_only_if_written_so():
    """An index must stay an int, and a float must keep its digits."""
    assert [number(text) for text in ("3", "-2", "0.5", "1e-3", "2.0")] == [3, -2, 0.5, 1e-3, 2.0]
    assert [type(number(text)) for text in ("3", "-2", "2.0")] == [int, int, float]
