"""
Every preference loss in explicit tensor code: the Pairs, the losses, the LOSSES table.

A loss sees log-probs only, no model: fn(pairs, *, hyperparameters) -> (losses, chosen_rewards, rejected_rewards), each (B,).
With w and l for the log-ratios of the chosen (winning) and the rejected (losing) completion,

    w = log pi(y_w | x) - log pi_ref(y_w | x)        pairs.chosen_logratios      (B,) nats
    l = log pi(y_l | x) - log pi_ref(y_l | x)        pairs.rejected_logratios    (B,) nats
    h = beta * (w - l)                               what most losses push up

A new loss is one function under `@register`: the command line's choices, flags and help, the README's table and the tests read
LOSSES; docs/new-loss.md says how to write one. The rewards are for the log: they carry no gradient. eps is label_smoothing, n and m are
the lengths in tokens of the chosen and the rejected completion. Read next: loop.py
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from logps import sequence_logps    # noqa: F401 - importable from here too
from support.registry import LOSSES, need, register

# ---------------------------------------------------------------------------------------------------------------------
# what a loss is given, and where it is found

@dataclass
class Pairs:
    """Summed log-probs in nats and lengths in tokens, each (B,). A loss with needs_ref=False does not look at the reference's."""
    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    ref_rejected_logps: torch.Tensor
    chosen_lens: torch.Tensor
    rejected_lens: torch.Tensor
    kl_logratios: torch.Tensor | None = None    # log-ratios of completions beside the wrong prompts, for losses that estimate the KL

    def per_token(self):
        """The same with means per token in place of sums."""
        n, m, kl = self.chosen_lens, self.rejected_lens, self.kl_logratios
        ref = (None, None) if self.ref_chosen_logps is None else (self.ref_chosen_logps / n, self.ref_rejected_logps / m)
        return Pairs(self.policy_chosen_logps / n, self.policy_rejected_logps / m, *ref, torch.ones_like(n), torch.ones_like(m), kl)

    @property
    def chosen_logratios(self):
        return self.policy_chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self):
        return self.policy_rejected_logps - self.ref_rejected_logps

def try_out(name, hparams):
    """Calls a loss on two pairs. Raises ValueError in one line for a hyperparameter out of its range, or an answer that is not a loss's."""
    loss, (c, r) = LOSSES[name], -torch.ones(2, 2, requires_grad=True)
    ref, kl = -torch.ones(2, 2) if loss.needs_ref else (None, None), torch.zeros(2) if loss.needs_kl else None
    try:
        out = loss.fn(Pairs(c, r, *ref, *torch.ones(2, 2), kl), **hparams)
    except (TypeError, AttributeError) as e:
        need("NoneType" not in str(e), f"--loss {name}: {e}: the reference's log-probs are None unless needs_ref=True, kl_logratios "
             "is None unless needs_kl=True, and a hyperparameter may be None")
        raise
    out = out if isinstance(out, (tuple, list)) else [out]
    shapes = [list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in out]
    need(shapes == [[2]] * 3, f"--loss {name} returns the shapes {', '.join(map(str, shapes))} for 2 pairs, not [2], [2], [2]; write "
         "return losses, chosen_rewards, rejected_rewards, each one number per pair, without .mean(): the training loop takes the mean")
    need(out[0].requires_grad, f"--loss {name}: its losses have no gradient; compute them from the policy's log-probs without .detach()")
    need(not out[1].requires_grad and not out[2].requires_grad,
         f"--loss {name}: its rewards have a gradient, but are only logged; return them with .detach()")

def log_ratios(pairs, beta):
    """w, l and h = beta * (w - l), (B,) each."""
    need(beta > 0, f"beta must be > 0, not {beta}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios
    return w, l, beta * (w - l)

def smoothed(h, eps):
    """-(1 - eps) log sigmoid(h) - eps log sigmoid(-h)."""
    need(0 <= eps < 0.5, f"label_smoothing must be in [0, 0.5), not {eps}")
    # logsigmoid(h), not sigmoid(h).log(): at h = -110 the second is -inf with a NaN gradient in fp32
    return -(1 - eps) * F.logsigmoid(h) - eps * F.logsigmoid(-h)

def with_rewards(losses, beta, chosen, rejected):
    return losses, (beta * chosen).detach(), (beta * rejected).detach()

def exp_line(x, cap=30.0):
    """e^x up to x = cap, then on along its tangent: finite in fp32 at x = 1e4, and with a gradient that does not vanish."""
    below = x.clamp(max=cap)
    return below.exp() * (1 + (x - below))

# ---------------------------------------------------------------------------------------------------------------------
# on the margin h: what counts is how far the chosen is above the rejected

@register(needs_ref=True, start="log(2)", limit="inf", trl="sigmoid")
def dpo(pairs, *, beta=0.1):
    """
    Direct Preference Optimization: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7.

        L = -log sigmoid(h),   h = beta * (w - l)

    beta  > 0. The strength of the KL penalty that the loss stands for: small beta lets the policy move far from the reference.

    Where all pairs agree, no margin is ever enough: whatever beta, the policy leaves the reference behind.
    """
    w, l, h = log_ratios(pairs, beta)
    return with_rewards(smoothed(h, 0.0), beta, w, l)

@register(needs_ref=True, start="log(2)", limit="log((1 - label_smoothing) / label_smoothing) / beta", trl="none: sigmoid has no smoothing")
def cdpo(pairs, *, beta=0.1, label_smoothing=0.1):
    """
    Conservative DPO: Mitchell 2023, ericmitchell.ai/cdpo.pdf.

        L = -(1 - eps) log sigmoid(h) - eps log sigmoid(-h)

    beta             > 0, as in dpo.
    label_smoothing  eps in [0, 0.5): assumed probability that a pair is labelled backwards.

    Unlike dpo it stops pushing where sigmoid(h) = 1 - eps, and pulls back what is beyond.
    """
    w, l, h = log_ratios(pairs, beta)
    return with_rewards(smoothed(h, label_smoothing), beta, w, l)

@register(needs_ref=True, start="log(2)", limit="inf", trl="robust")
def robust(pairs, *, beta=0.1, label_smoothing=0.05):
    """
    Robust DPO (rDPO): Chowdhury et al. 2024, arXiv:2403.00409.

        L = (-(1 - eps) log sigmoid(h) + eps log sigmoid(-h)) / (1 - 2 eps)

    beta             > 0, as in dpo.
    label_smoothing  eps in [0, 0.5): the known probability that a pair is labelled backwards.

    Unlike cdpo its second sign is +: over flipped labels its mean is dpo's loss on the true ones. On clean labels it pushes for ever.
    """
    need(0 <= label_smoothing < 0.5, f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    w, l, h = log_ratios(pairs, beta)
    losses = (-(1 - label_smoothing) * F.logsigmoid(h) + label_smoothing * F.logsigmoid(-h)) / (1 - 2 * label_smoothing)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="1", limit="1 / beta", trl="hinge")
def hinge(pairs, *, beta=0.2):
    """
    Hinge on DPO's margin: Liu et al. 2023 (RSO), arXiv:2309.06657. Reports that say "SLiC" often mean this one.

        L = max(0, 1 - h)

    beta  > 0. 1 / beta is the gap in nats at which a pair is left alone; at 0.1 (10 nats) one toy run in three leaves the language.

    Unlike dpo every pair below the gap pushes equally hard, and none beyond. `slic` is SLiC-HF as its own paper has it.
    """
    w, l, h = log_ratios(pairs, beta)
    return with_rewards(F.relu(1 - h), beta, w, l)

@register(needs_ref=True, start="1 / (4 * beta**2)", limit="1 / (2 * beta)", trl="ipo: on means per token, here --mean_logps")
def ipo(pairs, *, beta=0.1):
    """
    Identity Preference Optimization: Azar et al. 2023, arXiv:2310.12036, Eq. 17; their tau is beta here.

        L = (w - l - 1 / (2 beta))^2

    beta  > 0. 1 / (2 beta) is the gap in nats at which a pair stands still: large beta keeps the policy near the reference.

    Unlike dpo it pulls back a pair that is too far apart. The log-ratios are sums, as the paper has them. Its authors told TRL's that
    their results came from means per token: that is --mean_logps, and another scale of beta.
    """
    w, l, _ = log_ratios(pairs, beta)
    return with_rewards((w - l - 1 / (2 * beta)) ** 2, beta, w, l)

@register(needs_ref=True, start="log(2)", limit="inf", trl="sigmoid with f_divergence_type; alpha is 1 - its alpha")
def fdpo(pairs, *, beta=1.0, divergence="jsd", alpha=0.5):
    """
    f-DPO, DPO with another divergence than the reverse KL: Wang et al. 2023, arXiv:2309.16240.

        L = -log sigmoid(beta * (g(w) - g(l))),   g = f'(pi / pi_ref) as a function of the log-ratio x, constants dropped

        reverse_kl   g = x                          this is dpo
        forward_kl   g = -e^-x
        jsd          g = log 2 + log sigmoid(x)
        alpha        g = (1 - e^(-alpha x)) / alpha

    beta        > 0, as in dpo, on another scale: with jsd g(w) stops at log 2, and at 0.1 only falling log-ratios are left to push.
    divergence  reverse_kl, forward_kl, jsd or alpha.
    alpha       in (0, 1], for divergence alpha alone: near 0 it is the reverse KL, at 1 the forward KL.

    Unlike dpo, a completion that the policy has nearly given up costs more and more: with forward_kl so steeply that a few pairs can
    throw the policy off. From x = -30 / alpha on g is a straight line: e^-x would overflow, and TRL's clamp there has no gradient.
    """
    links = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: -exp_line(-x),
        "jsd": lambda x: math.log(2) + F.logsigmoid(x),
        "alpha": lambda x: (1 - exp_line(-alpha * x)) / alpha,
    }
    need(divergence in links, f"divergence must be one of {', '.join(links)}, not {divergence}")
    need(0 < alpha <= 1, f"alpha must be in (0, 1], not {alpha}")
    w, l, _ = log_ratios(pairs, beta)
    g = links[divergence]
    return with_rewards(smoothed(beta * (g(w) - g(l)), 0.0), beta, g(w), g(l))

@register(needs_ref=True, start="-log(2) - log(label_smoothing * (1 - label_smoothing)) / 2",
          limit="log((1 - label_smoothing) / label_smoothing) / beta", trl="exo_pair", flat=True)
def exo(pairs, *, beta=0.5, label_smoothing=0.001):
    """
    Efficient Exact Optimization, on pairs: Ji et al. 2024, arXiv:2402.00856.

        L = p (log p - log(1 - eps)) + (1 - p) (log(1 - p) - log eps),   p = sigmoid(h)

    beta             > 0. With eps = 0.001 it stops at a gap of 6.9 / beta nats, so it is larger than in dpo.
    label_smoothing  eps in (0, 0.5): the data's preference is 1 - eps against eps.

    Unlike cdpo, whose KL runs from the data to the policy, this one runs from the policy to the data; both stop at the same gap.
    """
    need(0 < label_smoothing < 0.5, f"label_smoothing must be in (0, 0.5), not {label_smoothing}")
    w, l, h = log_ratios(pairs, beta)
    losses = (h.sigmoid() * (F.logsigmoid(h) - math.log(1 - label_smoothing))
              + (-h).sigmoid() * (F.logsigmoid(-h) - math.log(label_smoothing)))
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="(1 + log(2)) / 2", trl="discopop")
def discopop(pairs, *, beta=0.5, tau=0.2):
    """
    DiscoPOP, a loss found by a language model's search: Lu et al. 2024, arXiv:2406.08414.

        L = -(1 - mix) log sigmoid(h) + mix e^-h,   mix = sigmoid(h / tau)

    beta  > 0, larger than in dpo: for h > 0 it pushes harder than the logistic loss.
    tau   > 0. How sharply it changes from the logistic loss (h < 0) to the exponential one (h > 0).

    Below tau = 0.12 it is not convex: with the paper's 0.05 it rises from h = -0.11 to 0.07, so that a policy that starts as its
    reference is pushed the wrong way. mix and e^-h are multiplied as logarithms: apart, they are 0 * inf at h = -100.
    """
    need(tau > 0, f"tau must be > 0, not {tau}")
    w, l, h = log_ratios(pairs, beta)
    losses = -(-h / tau).sigmoid() * F.logsigmoid(h) + exp_line(F.logsigmoid(h / tau) - h)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2)", limit="inf")
def dpop(pairs, *, beta=0.1, lam=1.0):
    """
    DPO-Positive: Pal et al. 2024, arXiv:2402.13228.

        L = -log sigmoid(beta * (w - l - lam * max(0, -w)))

    beta  > 0, as in dpo.
    lam   >= 0. Nats of margin lost for each nat that the chosen completion falls below the reference.

    Unlike dpo a pair cannot win by both falling. On the policy's own samples some chosen ones must: from lam = 5 on nothing is learned.
    """
    need(lam >= 0, f"lam must be >= 0, not {lam}")
    w, l, h = log_ratios(pairs, beta)
    return with_rewards(smoothed(h - beta * lam * F.relu(-w), 0.0), beta, w, l)

@register(needs_ref=True, start="log(2)", flat=True)
def chipo(pairs, *, beta=0.1, r_max=10.0):
    """
    chi-squared Preference Optimization: Huang et al. 2024, arXiv:2407.13399.

        L = -log sigmoid(clip(beta * (phi(w) - phi(l)), -2 r_max, 2 r_max)),   phi(x) = e^min(x, 20) + x

    beta   > 0, as in dpo.
    r_max  > 0. Bound of the reward; beyond 2 r_max a pair is left alone, on either side, as in the paper.

    Unlike dpo a completion that becomes likelier pays a chi-squared price, e^w, so that the policy is kept within the data's coverage.
    """
    need(r_max > 0, f"r_max must be > 0, not {r_max}")
    w, l, _ = log_ratios(pairs, beta)
    phi = lambda x: x.clamp(max=20).exp() + x
    h = (beta * (phi(w) - phi(l))).clamp(-2 * r_max, 2 * r_max)
    return with_rewards(smoothed(h, 0.0), beta, phi(w), phi(l))

@register(needs_ref=True, start="log(2)", trl="aot", whole_batch=True)
def aot(pairs, *, beta=1.0, label_smoothing=0.0):
    """
    Alignment via Optimal Transport, paired: Melnyk et al. 2024, arXiv:2406.05882.

        L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d),   d = beta * (sort(c - r) - sort(c_ref - r_ref)) over the batch

    beta             > 0. Sorted differences are smaller than a pair's own, so it is larger than in dpo.
    label_smoothing  eps in [0, 0.5), as in cdpo.

    Unlike dpo it compares distributions: the sorted margins of the policy with the sorted ones of the reference. So it needs a large
    batch; gradient accumulation and several processes sort within each part of the batch only.
    """
    w, l, _ = log_ratios(pairs, beta)
    policy = (pairs.policy_chosen_logps - pairs.policy_rejected_logps).sort().values
    reference = (pairs.ref_chosen_logps - pairs.ref_rejected_logps).sort().values
    return with_rewards(smoothed(beta * (policy - reference), label_smoothing), beta, w, l)

@register(needs_ref=True, start="log(2)", trl="aot_unpaired", whole_batch=True)
def aot_unpaired(pairs, *, beta=1.0, label_smoothing=0.0):
    """
    Alignment via Optimal Transport, unpaired: Melnyk et al. 2024, arXiv:2406.05882.

        L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d),   d = beta * (sort(w) - sort(l)) over the batch

    beta             > 0, as in aot.
    label_smoothing  eps in [0, 0.5), as in cdpo.

    Unlike aot it needs no pairs: chosen and rejected completions may belong to different prompts. On the batch, the same holds.
    """
    w, l, _ = log_ratios(pairs, beta)
    return with_rewards(smoothed(beta * (w.sort().values - l.sort().values), label_smoothing), beta, w, l)

# ---------------------------------------------------------------------------------------------------------------------
# on each reward by itself: the chosen is to rise and the rejected to fall, whatever the other does

@register(needs_ref=True, start="2 * log(2)", trl="nca_pair")
def nca(pairs, *, beta=0.1):
    """
    Noise Contrastive Alignment, on pairs: Chen et al. 2024, arXiv:2402.05369.

        L = -log sigmoid(beta w) - log sigmoid(-beta w) / 2 - log sigmoid(-beta l) / 2

    beta  > 0, as in dpo.

    Unlike dpo it settles the chosen completion's own log-ratio, at w = log(2) / beta.
    """
    w, l, _ = log_ratios(pairs, beta)
    losses = -F.logsigmoid(beta * w) - 0.5 * F.logsigmoid(-beta * w) - 0.5 * F.logsigmoid(-beta * l)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="2 * log(2)", limit="inf", trl="bco_pair")
def bco(pairs, *, beta=0.1):
    """
    Binary Classifier Optimization: Jung et al. 2024, arXiv:2404.04656, with the reward shift at 0.

        L = -log sigmoid(beta w) - log sigmoid(-beta l)

    beta  > 0, as in dpo.

    Unlike dpo the chosen has to rise and the rejected to fall, each against the reference. It bounds dpo's loss from above.
    """
    w, l, _ = log_ratios(pairs, beta)
    return with_rewards(-F.logsigmoid(beta * w) - F.logsigmoid(-beta * l), beta, w, l)

@register(needs_ref=True, start="1 / (2 * beta**2)", limit="1 / beta", trl="sppo_hard")
def sppo(pairs, *, beta=0.1):
    """
    Self-Play Preference Optimization with hard labels: Wu et al. 2024, arXiv:2405.00675.

        L = (w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2

    beta  > 0. 1 / (2 beta) is how far in nats the chosen is to rise, and the rejected to fall.

    Unlike ipo both completions have a place of their own. The paper samples anew each round; this is one round on given pairs.
    """
    w, l, _ = log_ratios(pairs, beta)
    return with_rewards((w - 1 / (2 * beta)) ** 2 + (l + 1 / (2 * beta)) ** 2, beta, w, l)

@register(needs_ref=True, start="1", limit="inf", trl="apo_zero", flat=True)
def apo_zero(pairs, *, beta=0.1):
    """
    Anchored Preference Optimization, zero: D'Oosterlinck et al. 2024, arXiv:2408.06266.

        L = 1 - sigmoid(beta w) + sigmoid(beta l)

    beta  > 0, as in dpo.

    For data better than the policy. Unlike dpo both are anchored at the reference, and a pair far out on either side has no pull.
    """
    w, l, _ = log_ratios(pairs, beta)
    return with_rewards(1 - (beta * w).sigmoid() + (beta * l).sigmoid(), beta, w, l)

@register(needs_ref=True, start="1", trl="apo_down", flat=True)
def apo_down(pairs, *, beta=0.1):
    """
    Anchored Preference Optimization, down: D'Oosterlinck et al. 2024, arXiv:2408.06266.

        L = sigmoid(beta w) + 1 - sigmoid(h)

    beta  > 0, as in dpo.

    For data worse than the policy: the chosen one falls too, only less. On the policy's own samples no language is left in the end.
    """
    w, l, h = log_ratios(pairs, beta)
    return with_rewards((beta * w).sigmoid() + 1 - h.sigmoid(), beta, w, l)

@register(needs_ref=True, start="(desirable_weight + undesirable_weight) / 4", needs_kl=True, trl="KTOTrainer, on single completions",
          flat=True)
def kto(pairs, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    """
    Kahneman-Tversky Optimization, on both sides of a pair: Ethayarajh et al. 2024, arXiv:2402.01306.

        L = (desirable_weight (1 - sigmoid(beta (w - kl))) + undesirable_weight (1 - sigmoid(beta (kl - l)))) / 2

    beta                > 0, as in dpo.
    desirable_weight    >= 0, of the chosen completions.
    undesirable_weight  >= 0, of the rejected ones.

    Unlike dpo it does not compare the two, but each with kl, the policy's distance from the reference: max(0, mean of kl_logratios),
    without gradient. It is a mean over the batch: accumulation and several processes each use that of their part.
    """
    need(desirable_weight >= 0 and undesirable_weight >= 0, "desirable_weight and undesirable_weight must be >= 0")
    w, l, _ = log_ratios(pairs, beta)
    kl = pairs.kl_logratios.mean().clamp(min=0).detach() if pairs.kl_logratios is not None else 0.0
    losses = desirable_weight * (1 - (beta * (w - kl)).sigmoid()) + undesirable_weight * (1 - (beta * (kl - l)).sigmoid())
    return with_rewards(losses / 2, beta, w, l)

# ---------------------------------------------------------------------------------------------------------------------
# without a reference: c and r are the policy's log-probs

@register(needs_ref=False)
def slic(pairs, *, delta=1.0, reg=0.1):
    """
    SLiC-HF: Zhao et al. 2023, arXiv:2305.10425, with the chosen completion as the target of the regularisation.

        L = max(0, delta - c + r) - reg c

    delta  > 0. The margin in nats between the two summed log-probs at which the calibration stops.
    reg    >= 0. Weight of the cross-entropy, the only thing that keeps the policy near where it started.

    Unlike hinge it compares log-probs: a pair starts out right or wrong by its lengths. The rewards in the log are c and r.
    """
    need(delta > 0 and reg >= 0, f"delta must be > 0 and reg >= 0, not {delta} and {reg}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    return with_rewards(F.relu(delta - c + r) - reg * c, 1.0, c, r)

def mean_logps(pairs):
    return pairs.policy_chosen_logps / pairs.chosen_lens, pairs.policy_rejected_logps / pairs.rejected_lens    # (B,)

@register(needs_ref=False, per_token=True, trl="CPOTrainer with simpo")
def simpo(pairs, *, beta=2.0, gamma_beta_ratio=0.1):
    """
    Simple Preference Optimization: Meng et al. 2024, arXiv:2405.14734.

        L = -log sigmoid(beta * (c / n - r / m - gamma_beta_ratio))

    beta              > 0. On means per token, so of the order of 1 to 10, not of 0.1.
    gamma_beta_ratio  >= 0. The margin per token, nats, to reach: the paper's gamma over beta. A tenth of the entropy of a token.

    Unlike dpo nothing but a small learning rate holds it near a reference.
    """
    need(beta > 0 and gamma_beta_ratio >= 0, f"beta must be > 0 and gamma_beta_ratio >= 0, not {beta} and {gamma_beta_ratio}")
    c, r = mean_logps(pairs)
    return with_rewards(smoothed(beta * (c - r - gamma_beta_ratio), 0.0), beta, c, r)

@register(needs_ref=False, has_nll=True, trl="CPOTrainer with sigmoid")
def cpo(pairs, *, beta=0.1, nll_weight=1.0):
    """
    Contrastive Preference Optimization: Xu et al. 2024, arXiv:2401.08417.

        L = -log sigmoid(beta * (c - r)) - nll_weight c / n

    beta        > 0, as in dpo.
    nll_weight  >= 0. Weight of the chosen's NLL per token, which stands in for the reference.

    Unlike dpo it takes the reference for uniform, so that it drops out.
    """
    need(beta > 0 and nll_weight >= 0, f"beta must be > 0 and nll_weight >= 0, not {beta} and {nll_weight}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    return with_rewards(smoothed(beta * (c - r), 0.0) - nll_weight * mean_logps(pairs)[0], beta, c, r)

@register(needs_ref=False, per_token=True, has_nll=True, trl="ORPOTrainer")
def orpo(pairs, *, lam=0.1):
    """
    Odds Ratio Preference Optimization: Hong et al. 2024, arXiv:2403.07691.

        L = -c / n - lam * log sigmoid(log odds(c / n) - log odds(r / m)),   log odds(x) = x - log(1 - e^x)

    lam  >= 0. Weight of the odds ratio beside the NLL.

    Unlike dpo it is fine-tuning first: the preference is a small term on top, and there is no SFT policy to start from.
    """
    need(lam >= 0, f"lam must be >= 0, not {lam}")
    c, r = mean_logps(pairs)
    # 1 - e^x = -expm1(x): the difference itself is 0 in fp32 for a mean log-prob above -6e-8
    log_odds = lambda x: x - (-torch.expm1(x.clamp(max=-1e-6))).log()
    return with_rewards(-c - lam * F.logsigmoid(log_odds(c) - log_odds(r)), 1.0, c, r)

@register(needs_ref=False)
def unlikelihood(pairs, *, alpha=0.1):
    """
    Unlikelihood, a baseline of the DPO paper (arXiv:2305.18290).

        L = -c + alpha r

    alpha  in [0, 1]. Weight of pushing the rejected completion down.

    Unlike dpo nothing stops it: log-probs of rejected completions fall without end, and the language with them.
    """
    need(0 <= alpha <= 1, f"alpha must be in [0, 1], not {alpha}")
    c, r = pairs.policy_chosen_logps, pairs.policy_rejected_logps    # (B,)
    return with_rewards(-c + alpha * r, 1.0, c, r)

@register(needs_ref=False, per_token=True, has_nll=True, trl="sft: the mean over all tokens of the batch")
def sft(pairs):
    """
    Preferred-FT, a baseline of the DPO paper (arXiv:2305.18290): supervised fine-tuning on the chosen completions.

        L = -c / n

    Unlike dpo it never looks at the rejected one. The rewards in the log are log-probs per token.
    """
    c, r = mean_logps(pairs)
    return with_rewards(-c, 1.0, c, r)
