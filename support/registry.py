"""
The LOSSES table: @register reads a loss's name, hyperparameters and flags from its function, and checks its form.

    @register(needs_ref=True)
    def mine(pairs, *, beta=0.1): ...

`try_out` calls a loss once before a run begins. The losses are in losses.py and losses_free.py, which share the two
functions at the end. docs/new-loss.md says how to write one.
"""
import inspect
import types
import typing
from dataclasses import dataclass
from pathlib import Path

import torch

@dataclass
class Loss:
    """An entry of LOSSES. Expressions are in terms of the hyperparameters; docs/new-loss.md explains each field."""
    fn: object           # (pairs, **hparams) -> (losses, chosen_rewards, rejected_rewards), each (B,)
    needs_ref: bool      # whether the result depends on the reference's log-probs
    hparams: dict        # name -> default, from the function's signature
    start: str           # expression: the loss while policy == reference; "" if it depends on the pair
    limit: str           # expression: the gap w - l in nats at which it stops pushing; "inf": never; "": no such gap
    trl: str             # its name in TRL 1.16, and how that version differs
    per_token: bool      # it already uses means per token
    has_nll: bool        # it already contains the chosen completion's NLL
    needs_kl: bool       # it reads kl_logratios
    needs_gap: bool      # it reads reward_gaps, so the data must have rewards
    needs_lens: bool     # it compares the lengths of the completions
    whole_batch: bool    # a pair's loss depends on the batch's other pairs
    flat: bool           # by design it has no gradient far from the reference
    unpaired: bool       # it looks at each completion by itself, so that thumbs up and down will do (unpaired.py)
    flag_types: dict     # name -> the function that reads the flag's text: float, int, number, str; or bool

LOSSES = {}    # name -> Loss, in the order of losses.py

def need(condition, message):
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)

# ---------------------------------------------------------------------------------------------------------------------
# Registration

def register(fn=None, *, needs_ref=None, start="", limit="", trl="none", per_token=False, has_nll=False, needs_kl=False,
             needs_gap=False, needs_lens=False, whole_batch=False, flat=False, unpaired=False):
    """
    Decorator that adds a loss to LOSSES and returns the function unchanged. Raises ValueError for a function that
    cannot be a loss, in one line that says how to write it.
    """
    def add(fn):
        code = fn.__code__
        where = f"{Path(code.co_filename).name}, line {code.co_firstlineno}, loss {fn.__name__}"
        need(type(needs_ref) is bool,
             f"{where}: write @register(needs_ref=True), or needs_ref=False if it does not read the reference")
        need(fn.__name__ not in LOSSES, f"{where}: there is a loss of this name already; choose another name")
        hparams, flag_types = hyperparameters(fn, where)
        LOSSES[fn.__name__] = Loss(fn, needs_ref, hparams, start, limit, trl, per_token, has_nll, needs_kl, needs_gap,
                                   needs_lens, whole_batch, flat, unpaired, flag_types)
        return fn
    # fn is a function where @register stands without parentheses: add then refuses it, because needs_ref is missing
    return add(fn) if inspect.isfunction(fn) else add

def hyperparameters(fn, where):
    """({name: default}, {name: type of its flag}) from a loss's signature. where: begins each error message."""
    first, *params = list(inspect.signature(fn, eval_str=True).parameters.values()) or [None]
    form = f"write def {fn.__name__}(pairs, *, beta=0.1): the pairs, a star, and hyperparameters with defaults"
    need(first and first.kind is first.POSITIONAL_OR_KEYWORD and first.default is first.empty, f"{where}: {form}")
    for p in params:
        need(p.kind is p.KEYWORD_ONLY, f"{where}: {p.name} does not stand behind a star; {form}")
        need(p.default is not p.empty, f"{where}: {p.name} has no default; {form}")
    return {p.name: p.default for p in params}, {p.name: flag_type(p, where) for p in params}

def number(text):
    """The value of a flag whose default is an integer: an int if it is written as one, else a float."""
    return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)

TYPES = {int: number, type(None): float}    # type of a default -> type of the flag, where they differ

def flag_type(p, where):
    """
    The type of a hyperparameter's flag: its annotation, or else the type of its default. p: an inspect.Parameter.
    Raises ValueError for a type that no flag can have.
    """
    is_union = typing.get_origin(p.annotation) in (typing.Union, types.UnionType)    # such as float | None
    annotated = typing.get_args(p.annotation) if is_union else [p.annotation]
    kinds = list(set(annotated) - {type(None), p.empty}) or [TYPES.get(type(p.default), type(p.default))]
    fits = p.default is None or type(p.default) is kinds[0] or (type(p.default) is int and kinds[0] in (number, float))
    need(len(kinds) == 1 and kinds[0] in (bool, int, float, str, number) and fits,
         f"{where}: {p.name}, a {type(p.default).__name__}, cannot be a flag; a default is a float, int, bool, str or "
         "None, and an annotation, as in cap: str = None, is one of these types")
    return kinds[0]

# ---------------------------------------------------------------------------------------------------------------------
# One call before a run begins

def try_out(name, hparams, new_pairs):
    """
    Calls a loss of LOSSES on two made-up pairs, so that an error shows before a run begins and not after an hour.
    new_pairs is losses.Pairs. It is passed in because support/ imports nothing of the root.
    Raises ValueError, in one line, for a hyperparameter out of its range and for outputs that are not a loss's.
    """
    loss = LOSSES[name]
    try:
        outputs = loss.fn(trial_pairs(new_pairs, loss), **hparams)
    except (TypeError, AttributeError) as e:
        # Any other bug keeps its traceback. An operation on None most often means that a field was not asked for
        need("NoneType" not in str(e),
             f"--loss {name}: {e}: the reference's log-probs are None unless needs_ref=True, kl_logratios is None "
             "unless needs_kl=True, reward_gaps is None unless needs_gap=True, and a hyperparameter may be None")
        raise
    check_outputs(name, outputs)

def trial_pairs(new_pairs, loss):
    """Two pairs with log-probs of -1 and completions of one token. A field that the loss does not need is None."""
    policy = torch.full((2, 2), -1.0, requires_grad=True)                    # (2, B) nats: chosen, rejected
    ref = torch.full((2, 2), -1.0) if loss.needs_ref else (None, None)       # (2, B) nats
    lens = torch.ones(2)                                                     # (B,) tokens
    kl_logratios = torch.zeros(2) if loss.needs_kl else None                 # (B,) nats
    reward_gaps = torch.ones(2) if loss.needs_gap else None                  # (B,)
    return new_pairs(*policy, *ref, lens, lens, kl_logratios, reward_gaps)

def check_outputs(name, outputs):
    """Raises ValueError unless outputs are three tensors (2,): losses with a gradient, and two rewards without one."""
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    shapes = [list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in outputs]
    need(shapes == [[2]] * 3,
         f"--loss {name} returns the shapes {', '.join(map(str, shapes))} for 2 pairs, not [2], [2], [2]; write return "
         "losses, chosen_rewards, rejected_rewards, each one number per pair, without .mean(): the training loop takes "
         "the mean")
    losses, chosen_rewards, rejected_rewards = outputs
    need(losses.requires_grad,
         f"--loss {name}: its losses have no gradient; compute them from the policy's log-probs without .detach()")
    need(not chosen_rewards.requires_grad and not rejected_rewards.requires_grad,
         f"--loss {name}: its rewards have a gradient, but are only logged; return them with .detach()")

# ---------------------------------------------------------------------------------------------------------------------
# Parts that the losses of both files share

def with_rewards(losses, beta, chosen, rejected):
    """What a loss returns: losses, beta * chosen, beta * rejected, (B,) each. The rewards are detached."""
    return losses, (beta * chosen).detach(), (beta * rejected).detach()

def exp_line(x, cap=30.0):
    """
    e^x up to x = cap, and the tangent at cap from there on.

    It is finite in float32 at x = 1e4. A clamp would be finite too, but its gradient is 0, so a pair out there would
    never move.
    """
    below = x.clamp(max=cap)
    return below.exp() * (1 + (x - below))
