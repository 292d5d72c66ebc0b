"""
Comparison with TRL's own code, where it is installed. The losses have the same means; known differences have a test
each.
"""
import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from losses import LOSSES, Pairs

trl = pytest.importorskip("trl")

LENS = (10, 12, 7, 14, 7, 9)    # tokens of three chosen and three rejected completions

def random_logps(seed=0, spread=4.0):
    """The policy's and the reference's summed log-probs, (6,) each: three chosen, then three rejected."""
    g = torch.Generator().manual_seed(seed)
    ref = -20 - 30 * torch.rand(6, generator=g)
    return (ref + spread * torch.randn(6, generator=g)).requires_grad_(), ref

def trl_loss(policy, ref, loss_type="sigmoid", f_divergence_type="reverse_kl", f_alpha=0.5, beta=0.1,
             label_smoothing=0.0, tau=0.05):
    """DPOTrainer._compute_loss of given log-probs. A stub stands in for the model."""
    T = max(LENS) + 1
    mask = torch.zeros(6, T, dtype=torch.long)
    for i, n in enumerate(LENS):
        mask[i, 1:1 + n] = 1
    per_token = (policy / torch.tensor(LENS))[:, None] * mask[:, 1:]
    outputs = SimpleNamespace(log_probs=per_token, entropy=torch.zeros(6, T - 1), mean_logits=torch.zeros(6, T - 1),
                              is_top1=torch.zeros(6, T - 1, dtype=torch.bool))
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator, args=SimpleNamespace(discopop_tau=tau),
        loss_types=[loss_type], loss_weights=[1.0], beta=beta, label_smoothing=label_smoothing,
        f_divergence_type=f_divergence_type, f_alpha_divergence_coef=f_alpha, precompute_ref_logps=True,
        aux_loss_enabled=False, ld_alpha=None, use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1)
    inputs = {"input_ids": torch.zeros(6, T, dtype=torch.long), "attention_mask": torch.ones(6, T),
              "completion_mask": mask,
              "ref_chosen_logps": ref[:3], "ref_rejected_logps": ref[3:]}
    return trl.DPOTrainer._compute_loss(trainer, lambda **kwargs: outputs, inputs, False)

def ours(name, policy, ref, mean_logps=False, **hparams):
    lens = torch.tensor(LENS, dtype=torch.float)
    pairs = Pairs(*policy.chunk(2), *ref.chunk(2), *lens.chunk(2))
    defaults = {"beta": 0.1, "tau": 0.05}    # as in trl_loss
    hparams = {k: v for k, v in defaults.items() if k in LOSSES[name].hparams} | hparams
    return LOSSES[name].fn(pairs.per_token() if mean_logps else pairs, **hparams)[0].mean()

def assert_same(a, b, policy):
    assert a.item() == pytest.approx(b.item(), rel=1e-4, abs=1e-6)
    gradients = [torch.autograd.grad(loss, policy, retain_graph=True)[0].tolist() for loss in (a, b)]
    for x, y in zip(*gradients):
        assert x == pytest.approx(y, rel=1e-3, abs=1e-6)

@pytest.mark.parametrize("name, loss_type, hparams", [
    ("dpo", "sigmoid", {}),
    ("hinge", "hinge", {}),
    ("exo", "exo_pair", {"label_smoothing": 0.001}),
    ("nca", "nca_pair", {}),
    ("robust", "robust", {"label_smoothing": 0.1}),
    ("bco", "bco_pair", {}),
    ("sppo", "sppo_hard", {}),
    ("aot", "aot", {"label_smoothing": 0.1}),
    ("aot_unpaired", "aot_unpaired", {"label_smoothing": 0.1}),
    ("apo_zero", "apo_zero", {}),
    ("apo_down", "apo_down", {}),
    ("discopop", "discopop", {})])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_as_trls(name, loss_type, hparams, seed):
    """Two independent implementations with equal values and gradients are rarely wrong in the same way."""
    policy, ref = random_logps(seed)
    assert_same(ours(name, policy, ref, **hparams), trl_loss(policy, ref, loss_type, **hparams), policy)

@pytest.mark.parametrize("divergence, theirs", [
    ("reverse_kl", "reverse_kl"), ("forward_kl", "forward_kl"), ("jsd", "js_divergence")])
def test_f_dpos_divergences_are_the_same(divergence, theirs):
    """Constants in g cancel, so TRL's 1 - e^-x and our -e^-x are the same loss."""
    policy, ref = random_logps()
    mine = ours("fdpo", policy, ref, divergence=divergence)
    assert_same(mine, trl_loss(policy, ref, f_divergence_type=theirs), policy)

@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.7])
def test_trls_alpha_is_one_minus_the_papers(alpha):
    """Results for alpha 0.3 in one library are results for 0.7 in the other."""
    policy, ref = random_logps()
    mine = ours("fdpo", policy, ref, divergence="alpha", alpha=alpha)
    theirs = lambda alpha: trl_loss(policy, ref, f_divergence_type="alpha_divergence", f_alpha=alpha)
    assert_same(mine, theirs(1 - alpha), policy)
    if alpha != 0.5:
        assert mine.item() != pytest.approx(theirs(alpha).item(), rel=1e-3)

def test_trls_ipo_takes_means_per_token():
    """The paper's loss has sums. Our --mean_logps gives TRL's loss."""
    policy, ref = random_logps()
    assert_same(ours("ipo", policy, ref, mean_logps=True), trl_loss(policy, ref, "ipo"), policy)
    assert ours("ipo", policy, ref).item() != pytest.approx(trl_loss(policy, ref, "ipo").item(), rel=0.01)

def test_trls_sigmoid_ignores_label_smoothing():
    """Users who set this option in TRL to train cDPO train DPO."""
    policy, ref = random_logps()
    theirs = trl_loss(policy, ref).item()
    assert trl_loss(policy, ref, label_smoothing=0.2).item() == theirs
    assert ours("cdpo", policy, ref, label_smoothing=0.2).item() != pytest.approx(theirs, rel=0.01)

def test_trls_sft_is_a_mean_over_all_tokens():
    """Here each pair has the same weight, in TRL each token."""
    policy, ref = random_logps()
    tokens = -policy[:3].sum() / sum(LENS[:3])
    assert trl_loss(policy, ref, "sft").item() == pytest.approx(tokens.item(), rel=1e-5)
    pairs = (-policy[:3] / torch.tensor(LENS[:3])).mean()
    assert ours("sft", policy, ref).item() == pytest.approx(pairs.item(), rel=1e-5)

def trl_cpo_loss(policy, **settings):
    """CPOTrainer.cpo_loss of the policy's log-probs, (6,): the mean. They are means per token for simpo and alphapo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")    # trl.experimental warns that it may change
        from trl.experimental.cpo import CPOTrainer
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), label_smoothing=0.0, **settings)
    return CPOTrainer.cpo_loss(trainer, *policy.chunk(2))[0].mean()

@pytest.mark.parametrize("alpha", [0.25, 1.0, -0.5, 0.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_alphapo_is_trls_cpo_trainer_with_simpo_and_alpha(alpha, seed):
    """TRL's simpo_gamma is not divided by beta. At alpha 0 both are SimPO."""
    policy, ref = random_logps(seed)
    mine = ours("alphapo", policy, ref, beta=2.5, gamma_beta_ratio=0.2, alpha=alpha)
    means = policy / torch.tensor(LENS)
    assert_same(mine, trl_cpo_loss(means, loss_type="simpo", beta=2.5, simpo_gamma=0.5, alpha=alpha), policy)
    if alpha == 0:
        assert mine.item() == ours("simpo", policy, ref, beta=2.5, gamma_beta_ratio=0.2).item()

def test_trls_alphapo_is_not_finite_where_ours_still_pulls():
    """p = e^-110 is 0 in float32, and 0^-alpha is infinite. The difference of two such rewards is NaN."""
    policy = torch.tensor([-110.0 * n for n in LENS], requires_grad=True)
    settings = dict(loss_type="simpo", beta=2.0, simpo_gamma=0.2, alpha=0.25)
    assert not torch.isfinite(trl_cpo_loss(policy / torch.tensor(LENS), **settings))
    loss = ours("alphapo", policy, torch.zeros(6), beta=2.0)
    grad, = torch.autograd.grad(loss, policy)
    assert torch.isfinite(loss) and (grad[:3] < 0).all() and (grad[3:] > 0).all()

def test_trls_forward_kl_is_not_finite_where_ours_still_pulls():
    """
    At a log-ratio of -200, exp(200) is inf in float32. Our loss continues as a line there, with a finite gradient.
    """
    ref = torch.full((6,), -300.0)
    policy = (ref + torch.tensor([-200.0] * 3 + [-250.0] * 3)).requires_grad_()
    assert not torch.isfinite(trl_loss(policy, ref, f_divergence_type="forward_kl"))
    wrong = (ref + torch.tensor([-200.0] * 3 + [0.0] * 3)).requires_grad_()
    loss = ours("fdpo", wrong, ref, divergence="forward_kl")
    grad, = torch.autograd.grad(loss, wrong)
    assert torch.isfinite(loss) and grad.isfinite().all() and (grad[:3] < 0).all()

def test_trls_alpha_divergence_has_no_gradient_far_out_where_ours_has():
    """TRL's clamp gives a finite value and, without any warning, a gradient of 0."""
    ref = torch.full((6,), -300.0)
    policy = (ref + torch.tensor([-250.0] * 3 + [0.0] * 3)).requires_grad_()
    theirs, = torch.autograd.grad(trl_loss(policy, ref, f_divergence_type="alpha_divergence", f_alpha=0.5), policy)
    mine, = torch.autograd.grad(ours("fdpo", policy, ref, divergence="alpha", alpha=0.5), policy)
    assert (theirs[:3] == 0).all() and (mine[:3] < 0).all()
