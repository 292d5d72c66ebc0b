"""
The LOSSES table: @register reads a loss's name, hyperparameters and flags off its function, and refuses what cannot be a loss.

Losses and the table's users are in losses.py and train_pref.py; docs/new-loss.md says how to write one.
"""
import inspect
import types
import typing
from dataclasses import dataclass
from pathlib import Path

@dataclass
class Loss:
    fn: object        # (pairs, **hparams) -> (losses, chosen_rewards, rejected_rewards)
    needs_ref: bool   # whether the reference's log-probs change the answer
    hparams: dict     # name -> default, read off the function's signature
    start: str        # its value while policy == reference, as an expression of the hyperparameters; "" if it depends on the pair
    limit: str        # the gap w - l, nats, at which it stops pushing, likewise; "inf" if it never does; "" if the gap is not what counts
    trl: str          # TRL 1.16's name for it, and how that differs
    per_token: bool   # it takes means per token already
    has_nll: bool     # the chosen completion's NLL is part of it already
    needs_kl: bool    # it looks at kl_logratios
    whole_batch: bool    # a pair's loss depends on the batch's other pairs
    flat: bool        # by design it has no gradient at log-ratios far from 0
    flag_types: dict  # name -> bool, or what makes a value of the flag's text: float, int, number or str

LOSSES = {}

def register(fn=None, *, needs_ref=None, start="", limit="", trl="none", per_token=False, has_nll=False, needs_kl=False,
             whole_batch=False, flat=False):
    """Puts the loss under it into LOSSES. Raises ValueError, in one line that says how to write it, for what cannot be a loss."""
    def into_table(fn):
        where = f"{Path(fn.__code__.co_filename).name}, line {fn.__code__.co_firstlineno}, loss {fn.__name__}"
        need(type(needs_ref) is bool, f"{where}: write @register(needs_ref=True), or needs_ref=False if it does not look at the reference")
        need(fn.__name__ not in LOSSES, f"{where}: there is a loss of this name already; choose another name")
        hparams, flag_types = hyperparameters(fn, where)
        LOSSES[fn.__name__] = Loss(fn, needs_ref, hparams, start, limit, trl, per_token, has_nll, needs_kl, whole_batch, flat, flag_types)
        return fn
    return into_table(fn) if inspect.isfunction(fn) else into_table    # a function: @register without parentheses, which is refused

def hyperparameters(fn, where):
    """({name: default}, {name: type of its flag}), read off a loss's signature."""
    params = list(inspect.signature(fn, eval_str=True).parameters.values())
    form = f"write def {fn.__name__}(pairs, *, beta=0.1): the pairs, a star, and hyperparameters with defaults"
    need(params and params[0].kind is params[0].POSITIONAL_OR_KEYWORD and params[0].default is params[0].empty, f"{where}: {form}")
    for p in params[1:]:
        need(p.kind is p.KEYWORD_ONLY, f"{where}: {p.name} does not stand behind a star; {form}")
        need(p.default is not p.empty, f"{where}: {p.name} has no default; {form}")
    return {p.name: p.default for p in params[1:]}, {p.name: flag_type(p, where) for p in params[1:]}

def number(text):
    """The value of a flag whose default is a whole number: a whole number if it is written as one, else a float."""
    return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)

def flag_type(p, where):
    """What makes a hyperparameter's value: its annotation, or the type of its default, where None is for float and int for any number."""
    union = typing.get_origin(p.annotation) in (typing.Union, types.UnionType)    # float | None
    named = set(typing.get_args(p.annotation) if union else [p.annotation]) - {type(None), p.empty}
    kind, *more = named or [float if p.default is None else number if type(p.default) is int else type(p.default)]
    fits = p.default is None or type(p.default) is kind or (type(p.default) is int and kind in (number, float))
    need(not more and kind in (bool, int, float, str, number) and fits,
         f"{where}: {p.name}, a {type(p.default).__name__}, cannot be a flag; a default is a float, int, bool, str or None, and an "
         "annotation, as in cap: str = None, is one of these types")
    return kind

def need(ok, message):
    if not ok:
        raise ValueError(message)
