"""
Every preference loss in explicit tensor code: the Pairs, the losses, and the LOSSES table.

    python train_pref.py --loss dpo --beta 0.1

A loss is a function of log-probs. It never sees a model:

    fn(pairs, *, hyperparameters) -> (losses, chosen_rewards, rejected_rewards), each (B,)

The rewards are only logged, so they carry no gradient. The training loop takes the mean of the losses. Symbols:

    w = log pi(y_w | x) - log pi_ref(y_w | x)    pairs.chosen_logratios: of the winning completion, (B,) nats
    l = log pi(y_l | x) - log pi_ref(y_l | x)    pairs.rejected_logratios: of the losing completion, (B,) nats
    h = beta * (w - l)                           the margin, which most losses increase
    c, r                                         the policy's log-probs of the chosen and the rejected completion, nats
    n, m                                         lengths of the chosen and the rejected completion, tokens
    gap                                          reward of the chosen minus that of the rejected completion
    eps                                          label_smoothing

To add a loss, write one function under `@register`. The command line, the documents' tables and the tests read LOSSES.
Besides needs_ref, the arguments of @register are for them: support/registry.py says what each one means.
The losses without a reference are in losses_free.py, and importable from here.
docs/losses.md compares the losses, docs/new-loss.md says how to write one. Read next: losses_free.py
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from logps import sequence_logps    # noqa: F401 - importable from here too
from support.registry import LOSSES, exp_line, need, register, with_rewards    # noqa: F401 - LOSSES too

# ---------------------------------------------------------------------------------------------------------------------
# The input of a loss

@dataclass
class Pairs:
    """
    The log-probs of B pairs of completions: sums over tokens, in nats, and lengths in tokens. Each field is (B,).

    The reference's log-probs are None for a loss with needs_ref=False, kl_logratios is None unless needs_kl=True, and
    reward_gaps is None unless needs_gap=True. kl_logratios holds log-ratios of completions that belong to other
    prompts. kto estimates the KL with them. reward_gaps holds the reward of chosen minus the reward of rejected, in the
    units of the data. It is negative where the label contradicts the rewards.
    """
    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    ref_rejected_logps: torch.Tensor
    chosen_lens: torch.Tensor
    rejected_lens: torch.Tensor
    kl_logratios: torch.Tensor | None = None
    reward_gaps: torch.Tensor | None = None

    @property
    def chosen_logratios(self):
        """w, (B,) nats."""
        return self.policy_chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self):
        """l, (B,) nats."""
        return self.policy_rejected_logps - self.ref_rejected_logps

    def mean_logps(self):
        """c / n and r / m: the policy's log-probs as means per token, (B,) each, nats."""
        return self.policy_chosen_logps / self.chosen_lens, self.policy_rejected_logps / self.rejected_lens

    def per_token(self):
        """The same pairs with means per token instead of sums. kl_logratios and reward_gaps stay as they are."""
        n, m = self.chosen_lens, self.rejected_lens
        ref_chosen, ref_rejected = self.ref_chosen_logps, self.ref_rejected_logps
        if ref_chosen is not None:
            ref_chosen, ref_rejected = ref_chosen / n, ref_rejected / m
        return Pairs(self.policy_chosen_logps / n, self.policy_rejected_logps / m, ref_chosen, ref_rejected,
                     torch.ones_like(n), torch.ones_like(m), self.kl_logratios, self.reward_gaps)

# ---------------------------------------------------------------------------------------------------------------------
# Parts that several losses share

def log_ratios(pairs, beta):
    """w, l and h = beta * (w - l), (B,) each. Raises ValueError unless beta > 0."""
    need(beta > 0, f"beta must be > 0, not {beta}")
    w, l = pairs.chosen_logratios, pairs.rejected_logratios    # (B,)
    return w, l, beta * (w - l)

def smoothed(h, eps):
    """-(1 - eps) log sigmoid(h) - eps log sigmoid(-h), (B,): the logistic loss with a share eps of labels swapped."""
    need(0 <= eps < 0.5, f"label_smoothing must be in [0, 0.5), not {eps}")
    # F.logsigmoid(h), not h.sigmoid().log(): at h = -110 the second is -inf in float32, with a NaN gradient
    return -(1 - eps) * F.logsigmoid(h) - eps * F.logsigmoid(-h)

# ---------------------------------------------------------------------------------------------------------------------
# Losses on the margin h: they compare the chosen completion with the rejected one

@register(needs_ref=True, start="log(2)", limit="inf", trl="sigmoid")
def dpo(pairs, *, beta=0.1):
    """
    Direct Preference Optimization: Rafailov et al. 2023, arXiv:2305.18290, Eq. 7.

        L = -log sigmoid(h),   h = beta * (w - l)

    beta  > 0. Strength of the implied KL penalty: small beta lets the policy move far from the reference.

    The loss has no minimum where all pairs agree: for every beta, a larger margin is still better.
    """
    w, l, h = log_ratios(pairs, beta)    # (B,)
    losses = -F.logsigmoid(h)            # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2)", limit="log((1 - label_smoothing) / label_smoothing) / beta",
          trl="none: sigmoid has no smoothing")
def cdpo(pairs, *, beta=0.1, label_smoothing=0.1):
    """
    Conservative DPO: Mitchell 2023, ericmitchell.ai/cdpo.pdf.

        L = -(1 - eps) log sigmoid(h) - eps log sigmoid(-h)

    beta             > 0, as in dpo.
    label_smoothing  eps in [0, 0.5): assumed probability that a pair is labeled backwards.

    Unlike dpo it stops pushing at sigmoid(h) = 1 - eps, and pulls back a pair beyond that point.
    """
    w, l, h = log_ratios(pairs, beta)        # (B,)
    losses = smoothed(h, label_smoothing)    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2)", limit="inf", trl="robust")
def robust(pairs, *, beta=0.1, label_smoothing=0.05):
    """
    Robust DPO (rDPO): Chowdhury et al. 2024, arXiv:2403.00409.

        L = (-(1 - eps) log sigmoid(h) + eps log sigmoid(-h)) / (1 - 2 eps)

    beta             > 0, as in dpo.
    label_smoothing  eps in [0, 0.5): known probability that a pair is labeled backwards.

    Unlike in cdpo the second sign is +. Averaged over flipped labels, this loss equals dpo's loss on the true labels.
    It never stops pushing on clean labels.
    """
    eps = label_smoothing
    need(0 <= eps < 0.5, f"label_smoothing must be in [0, 0.5), not {eps}")
    w, l, h = log_ratios(pairs, beta)                                                   # (B,)
    losses = (-(1 - eps) * F.logsigmoid(h) + eps * F.logsigmoid(-h)) / (1 - 2 * eps)    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="1", limit="1 / beta", trl="hinge")
def hinge(pairs, *, beta=0.2):
    """
    Hinge loss on DPO's margin: Liu et al. 2023 (RSO), arXiv:2309.06657. Reports that say "SLiC" often mean this loss.

        L = max(0, 1 - h)

    beta  > 0. A pair is left alone from a gap w - l of 1 / beta nats on. At 0.1 one toy run in three collapses.

    Unlike dpo it pushes every pair below the gap equally hard, and no pair beyond it. For SLiC-HF as in its own paper,
    see `slic`.
    """
    w, l, h = log_ratios(pairs, beta)    # (B,)
    losses = F.relu(1 - h)               # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="1 / (4 * beta**2)", limit="1 / (2 * beta)",
          trl="ipo: on means per token, here --mean_logps")
def ipo(pairs, *, beta=0.1):
    """
    Identity Preference Optimization: Azar et al. 2023, arXiv:2310.12036, Eq. 17. Their tau is beta here.

        L = (w - l - 1 / (2 beta))^2

    beta  > 0. The loss aims at a gap w - l of 1 / (2 beta) nats: large beta keeps the policy near the reference.

    Unlike dpo it pulls back a pair whose gap is too large. The log-ratios are sums, as in the paper. Its authors told
    the TRL project that they had used means per token. `--mean_logps` gives that version, and beta then has another
    scale.
    """
    w, l, _ = log_ratios(pairs, beta)         # (B,)
    losses = (w - l - 1 / (2 * beta)) ** 2    # (B,)
    return with_rewards(losses, beta, w, l)

def link(x, divergence, alpha):
    """
    f'(u) at u = pi / pi_ref = e^x, without its constant terms: how f-DPO turns a log-ratio into a reward.

        divergence   f(u)                                              f'(u)                    link(x)
        reverse_kl   u log u                                           log u + 1                x
        forward_kl   -log u                                            -1 / u                   -e^-x
        jsd          u log u - (u + 1) log((u + 1) / 2)                log(2 u / (u + 1))       log 2 + log sigmoid(x)
        alpha        (u^(1 - a) - (1 - a) u - a) / (a (a - 1))         (1 - u^-a) / a           (1 - e^(-a x)) / a

    Derive a row in two steps: differentiate f, then put u = e^x. a is alpha. For a -> 0 the last row is reverse_kl. For
    a = 1 it is forward_kl plus a constant, which cancels between the two completions.

    x           (B,) log-ratios in nats
    divergence  reverse_kl, forward_kl, jsd or alpha
    alpha       in (0, 1], used by divergence alpha only
    returns     (B,)

    Raises ValueError for another divergence, or for an alpha out of range.
    """
    divergences = ("reverse_kl", "forward_kl", "jsd", "alpha")
    need(divergence in divergences, f"divergence must be one of {', '.join(divergences)}, not {divergence}")
    need(0 < alpha <= 1, f"alpha must be in (0, 1], not {alpha}")
    if divergence == "reverse_kl":
        return x
    if divergence == "forward_kl":
        return -exp_line(-x)                         # e^-x alone overflows float32 at x = -89
    if divergence == "jsd":
        return math.log(2) + F.logsigmoid(x)
    return (1 - exp_line(-alpha * x)) / alpha

@register(needs_ref=True, start="log(2)", limit="inf", trl="sigmoid with f_divergence_type; alpha is 1 - its alpha")
def fdpo(pairs, *, beta=1.0, divergence="jsd", alpha=0.5):
    """
    f-DPO, DPO with another divergence than the reverse KL: Wang et al. 2023, arXiv:2309.16240.

        L = -log sigmoid(beta * (g(w) - g(l))),   g(x) = f'(pi / pi_ref) as a function of the log-ratio x, see `link`

    beta        > 0, as in dpo, on another scale. With jsd g never exceeds log 2, so at beta 0.1 the margin grows mostly
                by the fall of l.
    divergence  reverse_kl, forward_kl, jsd or alpha.
    alpha       in (0, 1], for divergence alpha only: near 0 it is the reverse KL, at 1 the forward KL.

    Unlike dpo, the cost of a completion grows ever faster as its log-ratio falls. With forward_kl it grows so fast that
    a few pairs can make training diverge. Below x = -30 / alpha (-30 for forward_kl) g is a straight line, because e^-x
    would overflow. TRL clamps there, which gives no gradient.
    """
    w, l, _ = log_ratios(pairs, beta)                                    # (B,)
    g_w, g_l = link(w, divergence, alpha), link(l, divergence, alpha)    # (B,)
    losses = -F.logsigmoid(beta * (g_w - g_l))                           # (B,)
    return with_rewards(losses, beta, g_w, g_l)

@register(needs_ref=True, start="-log(2) - log(label_smoothing * (1 - label_smoothing)) / 2",
          limit="log((1 - label_smoothing) / label_smoothing) / beta", trl="exo_pair", flat=True)
def exo(pairs, *, beta=0.5, label_smoothing=0.001):
    """
    Efficient Exact Optimization, on pairs: Ji et al. 2024, arXiv:2402.00856.

        L = p (log p - log(1 - eps)) + (1 - p) (log(1 - p) - log eps),   p = sigmoid(h)

    beta             > 0. With eps = 0.001 the loss stops at a gap of 6.9 / beta nats, so beta is larger than in dpo.
    label_smoothing  eps in (0, 0.5): the data prefer the chosen completion with probability 1 - eps.

    This is KL(policy || data). cdpo minimizes KL(data || policy). Both stop pushing at the same gap.
    """
    eps = label_smoothing
    need(0 < eps < 0.5, f"label_smoothing must be in (0, 0.5), not {eps}")
    w, l, h = log_ratios(pairs, beta)                                         # (B,)
    p, log_p = h.sigmoid(), F.logsigmoid(h)                                   # (B,)
    q, log_q = (-h).sigmoid(), F.logsigmoid(-h)                               # (B,) q = 1 - p
    losses = p * (log_p - math.log(1 - eps)) + q * (log_q - math.log(eps))    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="(1 + log(2)) / 2", trl="discopop")
def discopop(pairs, *, beta=0.5, tau=0.2):
    """
    DiscoPOP, a loss that a language model found by search: Lu et al. 2024, arXiv:2406.08414.

        L = -(1 - mix) log sigmoid(h) + mix e^-h,   mix = sigmoid(h / tau)

    beta  > 0, larger than in dpo: for h > 0 it pushes harder than the logistic loss.
    tau   > 0. How sharply it changes from the logistic loss (h < 0) to the exponential one (h > 0).

    Below tau = 0.11 the loss is not monotonic. With the paper's tau = 0.05 it rises from h = -0.11 to h = 0.07. A
    policy that starts at the reference, at h = 0, is then pushed the wrong way.
    """
    need(tau > 0, f"tau must be > 0, not {tau}")
    w, l, h = log_ratios(pairs, beta)                      # (B,)
    logistic = -(-h / tau).sigmoid() * F.logsigmoid(h)     # (B,) sigmoid(-h / tau) = 1 - mix
    # mix e^-h = e^(log mix - h): as a product it would be 0 * inf at h = -100
    exponential = exp_line(F.logsigmoid(h / tau) - h)      # (B,)
    losses = logistic + exponential                        # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2)", limit="inf")
def dpop(pairs, *, beta=0.1, lam=1.0):
    """
    DPO-Positive: Pal et al. 2024, arXiv:2402.13228.

        L = -log sigmoid(h - beta * lam * max(0, -w))

    beta  > 0, as in dpo.
    lam   >= 0. Nats of margin lost for each nat that the chosen completion falls below the reference.

    Unlike in dpo, a pair cannot improve while both completions fall. On the policy's own samples some chosen
    completions must fall: from lam = 5 on nothing is learned.
    """
    need(lam >= 0, f"lam must be >= 0, not {lam}")
    w, l, h = log_ratios(pairs, beta)                      # (B,)
    losses = -F.logsigmoid(h - beta * lam * F.relu(-w))    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, limit="inf", needs_lens=True)
def rdpo(pairs, *, beta=0.1, alpha=0.01):
    """
    Length-regularized DPO (R-DPO): Park et al. 2024, arXiv:2403.19159.

        L = -log sigmoid(h + alpha * (n - m))

    beta   > 0, as in dpo.
    alpha  >= 0. Nats of reward that a token costs. At 0 the loss is dpo.

    Unlike in dpo, a difference of lengths explains a part of the preference: a pair whose chosen completion is longer
    is pushed less, one whose chosen completion is shorter is pushed more. The optimum is that of the reward minus alpha
    for each token.
    """
    need(alpha >= 0, f"alpha must be >= 0, not {alpha}")
    w, l, h = log_ratios(pairs, beta)                                                # (B,)
    losses = -F.logsigmoid(h + alpha * (pairs.chosen_lens - pairs.rejected_lens))    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, limit="inf", needs_gap=True)
def odpo(pairs, *, beta=0.1, alpha=1.0, scaling="log"):
    """
    DPO with an Offset (ODPO): Amini et al. 2024, arXiv:2402.10571.

        L = -log sigmoid(h - offset),   offset = alpha * log(gap),   gap = reward of chosen - reward of rejected

    beta     > 0, as in dpo.
    alpha    >= 0. Weight of the offset. At 0 the loss is dpo.
    scaling  log, or linear, where the offset is alpha * gap.

    Unlike in dpo, a pair must reach a larger margin if its rewards are farther apart. With log, as in the authors'
    code, L = log(1 + gap^alpha e^-h). A gap below 1e-6 counts as 1e-6: a pair whose label contradicts its rewards has
    almost no weight. Choose linear for noisy or drawn labels: a negative gap then lowers the margin to reach. On
    Bradley-Terry labels with rewards in nats, its optimum is that of dpo at beta / (1 + alpha).
    """
    need(alpha >= 0, f"alpha must be >= 0, not {alpha}")
    need(scaling in ("log", "linear"), f"scaling must be log or linear, not {scaling}")
    w, l, h = log_ratios(pairs, beta)                                                # (B,)
    gaps = pairs.reward_gaps                                                         # (B,) in the units of the rewards
    offsets = alpha * (gaps.clamp(min=1e-6).log() if scaling == "log" else gaps)     # (B,) nats
    losses = -F.logsigmoid(h - offsets)                                              # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2)", flat=True)
def chipo(pairs, *, beta=0.1, r_max=10.0):
    """
    chi-squared Preference Optimization: Huang et al. 2024, arXiv:2407.13399.

        L = -log sigmoid(clip(beta * (phi(w) - phi(l)), -2 r_max, 2 r_max)),   phi(x) = e^min(x, 20) + x

    beta   > 0, as in dpo.
    r_max  > 0. Bound of the reward. Beyond a margin of 2 r_max, on either side, a pair has no gradient, as in the
           paper.

    Unlike in dpo, a completion that becomes likelier costs a chi-squared penalty, e^w. It keeps the policy where the
    data are.
    """
    need(r_max > 0, f"r_max must be > 0, not {r_max}")
    w, l, _ = log_ratios(pairs, beta)                                 # (B,)
    phi_w = w.clamp(max=20).exp() + w                                 # (B,)
    phi_l = l.clamp(max=20).exp() + l                                 # (B,)
    margin = (beta * (phi_w - phi_l)).clamp(-2 * r_max, 2 * r_max)    # (B,)
    losses = -F.logsigmoid(margin)                                    # (B,)
    return with_rewards(losses, beta, phi_w, phi_l)

@register(needs_ref=True, start="log(2)", trl="aot", whole_batch=True)
def aot(pairs, *, beta=1.0, label_smoothing=0.0):
    """
    Alignment via Optimal Transport, paired: Melnyk et al. 2024, arXiv:2406.05882.

        L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d),   d = beta * (sort(c - r) - sort(c_ref - r_ref)) over the
                                                               batch

    beta             > 0. Differences of sorted values are smaller than a pair's own, so beta is larger than in dpo.
    label_smoothing  eps in [0, 0.5), as in cdpo.

    Unlike dpo it compares distributions: the policy's sorted margins with the reference's. It therefore needs a large
    batch. With gradient accumulation each part of the batch is sorted by itself, and so is the part of each process.
    """
    w, l, _ = log_ratios(pairs, beta)                                                           # (B,)
    policy_margins = (pairs.policy_chosen_logps - pairs.policy_rejected_logps).sort().values    # (B,)
    ref_margins = (pairs.ref_chosen_logps - pairs.ref_rejected_logps).sort().values             # (B,)
    d = beta * (policy_margins - ref_margins)                                                   # (B,)
    losses = smoothed(d, label_smoothing)                                                       # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2)", trl="aot_unpaired", whole_batch=True)
def aot_unpaired(pairs, *, beta=1.0, label_smoothing=0.0):
    """
    Alignment via Optimal Transport, unpaired: Melnyk et al. 2024, arXiv:2406.05882.

        L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d),   d = beta * (sort(w) - sort(l)) over the batch

    beta             > 0, as in aot.
    label_smoothing  eps in [0, 0.5), as in cdpo.

    Unlike aot it needs no pairs: chosen and rejected completions may belong to different prompts. It needs a large
    batch, as aot does.
    """
    w, l, _ = log_ratios(pairs, beta)                 # (B,)
    d = beta * (w.sort().values - l.sort().values)    # (B,)
    losses = smoothed(d, label_smoothing)             # (B,)
    return with_rewards(losses, beta, w, l)

# ---------------------------------------------------------------------------------------------------------------------
# Losses on each reward by itself: the chosen completion is to rise and the rejected one to fall, independently

@register(needs_ref=True, start="2 * log(2)", trl="nca_pair")
def nca(pairs, *, beta=0.1):
    """
    Noise Contrastive Alignment, on pairs: Chen et al. 2024, arXiv:2402.05369.

        L = -log sigmoid(beta w) - log sigmoid(-beta w) / 2 - log sigmoid(-beta l) / 2

    beta  > 0, as in dpo.

    Unlike dpo it fixes the chosen completion's own log-ratio, at w = log(2) / beta.
    """
    w, l, _ = log_ratios(pairs, beta)                                                                   # (B,)
    losses = -F.logsigmoid(beta * w) - 0.5 * F.logsigmoid(-beta * w) - 0.5 * F.logsigmoid(-beta * l)    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="2 * log(2)", limit="inf", trl="bco_pair", unpaired=True)
def bco(pairs, *, beta=0.1):
    """
    Binary Classifier Optimization: Jung et al. 2024, arXiv:2404.04656, with the reward shift at 0.

        L = -log sigmoid(beta w) - log sigmoid(-beta l)

    beta  > 0, as in dpo.

    Unlike in dpo, the chosen completion has to rise and the rejected one to fall, each against the reference. This loss
    is an upper bound of dpo's.
    """
    w, l, _ = log_ratios(pairs, beta)                             # (B,)
    losses = -F.logsigmoid(beta * w) - F.logsigmoid(-beta * l)    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="1 / (2 * beta**2)", limit="1 / beta", trl="sppo_hard")
def sppo(pairs, *, beta=0.1):
    """
    Self-Play Preference Optimization with hard labels: Wu et al. 2024, arXiv:2405.00675.

        L = (w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2

    beta  > 0. 1 / (2 beta) is how far in nats the chosen completion is to rise, and the rejected one to fall.

    Unlike ipo it gives each completion a target of its own. The paper samples new pairs in every round. Here there is
    one round, on given pairs.
    """
    w, l, _ = log_ratios(pairs, beta)                                 # (B,)
    losses = (w - 1 / (2 * beta)) ** 2 + (l + 1 / (2 * beta)) ** 2    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="log(2) + 1 / (2 * beta**2)")
def cal_dpo(pairs, *, beta=0.1):
    """
    Calibrated DPO: Xiao et al. 2024, arXiv:2412.14516.

        L = -log sigmoid(w - l) + (w - 1 / (2 beta))^2 + (l + 1 / (2 beta))^2

    beta  > 0. It sets the targets alone: log-ratios of 1 / (2 beta) and -1 / (2 beta) nats. The first term has no beta.

    Unlike sppo it has a term that compares the two completions, so it stops slightly beyond the targets. The authors'
    released code takes half of the squares.
    """
    w, l, _ = log_ratios(pairs, beta)                                       # (B,)
    squares = (w - 1 / (2 * beta)) ** 2 + (l + 1 / (2 * beta)) ** 2         # (B,)
    losses = -F.logsigmoid(w - l) + squares                                 # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="1", limit="inf", trl="apo_zero", flat=True)
def apo_zero(pairs, *, beta=0.1):
    """
    Anchored Preference Optimization, zero: D'Oosterlinck et al. 2024, arXiv:2408.06266.

        L = 1 - sigmoid(beta w) + sigmoid(beta l)

    beta  > 0, as in dpo.

    For data that are better than the policy. Unlike in dpo, both completions are compared with the reference. A pair
    far from the reference, on either side, has almost no gradient.
    """
    w, l, _ = log_ratios(pairs, beta)                           # (B,)
    losses = 1 - (beta * w).sigmoid() + (beta * l).sigmoid()    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="1", trl="apo_down", flat=True)
def apo_down(pairs, *, beta=0.1):
    """
    Anchored Preference Optimization, down: D'Oosterlinck et al. 2024, arXiv:2408.06266.

        L = sigmoid(beta w) + 1 - sigmoid(h)

    beta  > 0, as in dpo.

    For data that are worse than the policy: the chosen completion falls too, but less than the rejected one. On the
    policy's own samples the policy collapses in the end.
    """
    w, l, h = log_ratios(pairs, beta)                  # (B,)
    losses = (beta * w).sigmoid() + 1 - h.sigmoid()    # (B,)
    return with_rewards(losses, beta, w, l)

@register(needs_ref=True, start="(desirable_weight + undesirable_weight) / 4", needs_kl=True,
          trl="KTOTrainer, on single completions", flat=True, unpaired=True)
def kto(pairs, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    """
    Kahneman-Tversky Optimization, on both sides of a pair: Ethayarajh et al. 2024, arXiv:2402.01306.

        L = (desirable_weight (1 - sigmoid(beta (w - kl))) + undesirable_weight (1 - sigmoid(beta (kl - l)))) / 2

    beta                > 0, as in dpo.
    desirable_weight    >= 0, weight of the chosen completions.
    undesirable_weight  >= 0, weight of the rejected ones.

    Unlike dpo it does not compare the two completions. It compares each with kl, an estimate of the policy's KL to the
    reference: max(0, mean of kl_logratios over the batch), without gradient. With gradient accumulation each part of
    the batch has its own. kl_logratios are of completions of other prompts: one a pair, chosen and rejected in turn.
    TRL takes one for each completion, the next of the batch, whose prompt may be the same: half the variance, twice the
    cost.
    """
    need(desirable_weight >= 0 and undesirable_weight >= 0, "desirable_weight and undesirable_weight must be >= 0")
    w, l, _ = log_ratios(pairs, beta)                                           # (B,)
    kl = 0.0
    if pairs.kl_logratios is not None:
        kl = pairs.kl_logratios.mean().clamp(min=0).detach()                    # ()
    chosen_losses = desirable_weight * (1 - (beta * (w - kl)).sigmoid())        # (B,)
    rejected_losses = undesirable_weight * (1 - (beta * (kl - l)).sigmoid())    # (B,)
    return with_rewards((chosen_losses + rejected_losses) / 2, beta, w, l)

# ---------------------------------------------------------------------------------------------------------------------
# Losses without a reference

# At the bottom, so that LOSSES lists the losses in reading order
from losses_free import alphapo, cpo, log_odds, orpo, sft, simpo, slic, unlikelihood    # noqa: E402, F401
