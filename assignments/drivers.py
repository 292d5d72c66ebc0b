"""Parts that the `run` of several exercises share. They reach the worker as text, so each imports what it uses."""

def pairs_of(module, probe):
    """The Pairs of a probe with `values`, two log-probs of the policy and two of the reference, and `lens`."""
    for policy_logps in probe["values"][:2]:
        policy_logps.requires_grad_()
    return module.Pairs(*probe["values"], *probe["lens"])

def values_and_gradients(pairs, losses, chosen, rejected):
    """What a loss returned, and the gradient of its mean with respect to the policy's log-probs."""
    import torch
    grads = torch.autograd.grad(losses.mean(), [pairs.policy_chosen_logps, pairs.policy_rejected_logps])
    return dict(losses=losses, chosen_rewards=chosen, rejected_rewards=rejected,
                rewards_carry_no_gradient=[not chosen.requires_grad, not rejected.requires_grad],
                grad_chosen=grads[0], grad_rejected=grads[1])

def refusals(function, cases):
    """For each case, a tuple of arguments: 1 if the function raises ValueError, else 0."""
    found = []
    for case in cases:
        try:
            function(*case)
            found.append(0)
        except ValueError:
            found.append(1)
    return found
