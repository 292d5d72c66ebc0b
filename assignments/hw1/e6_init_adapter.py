"""
init_adapter, copy_neurons: the adapter before its first update

Which matrix starts at zero, and which neurons of the old MLP a smaller one begins with.
"""
from assignments.exercise import Mistake

TARGETS = ["adapters.py:init_adapter", "adapters.py:copy_neurons"]
POINTS, MINUTES = 6, 60

def probes(rng):
    """All four starts, and copies of three, of all and of a single neuron."""
    def case(title, mode, init, rank, n_inner=20):
        return dict(title=title, mode=mode, init=init, rank=rank, n_inner=n_inner, seed=int(rng.integers(1, 2**31)))
    return [case("sequential", "sequential", "random", 64), case("parallel", "parallel", "random", 48),
            case("replace, random", "replace", "random", 64), case("replace, 3 of 20 neurons", "replace", "neurons", 3),
            case("replace, all 20 neurons", "replace", "neurons", 20),
            case("replace, one of 64 neurons", "replace", "neurons", 1, 64)]

def run(module, probe):
    """Random starts: spreads in powers of two. Copies: what the adapter computes, whatever the order of its neurons."""
    import math
    import torch
    from model import MLP, GPTConfig
    torch.manual_seed(probe["seed"])
    C = 64
    mlp = MLP(GPTConfig(n_embd=C, n_head=1, n_inner=probe["n_inner"])).double()
    with torch.no_grad():
        for p in mlp.parameters():
            p.normal_()
        # the strongest reader, the strongest writer, the largest sum and the largest product are four different neurons
        reads, writes = 0.3 + 0.7 * torch.rand(2, probe["n_inner"]).double()
        four = torch.randperm(probe["n_inner"])[:4]
        reads[four] = torch.tensor([9, 0.05, 8.5, 3.5]).double()
        writes[four] = torch.tensor([0.05, 9.2, 1, 3.5]).double()
        mlp.c_fc.weight.mul_((reads / mlp.c_fc.weight.norm(dim=1))[:, None])
        mlp.c_proj.weight.mul_(writes / mlp.c_proj.weight.norm(dim=0))
    x = torch.randn(4, C).double() / 2
    before = [p.detach().clone() for p in mlp.parameters()]
    down, up = torch.nn.Linear(C, probe["rank"]).double(), torch.nn.Linear(probe["rank"], C).double()
    torch.nn.init.normal_(down.bias), torch.nn.init.normal_(up.bias)
    module.init_adapter(down, up, mlp, probe["mode"], probe["init"])
    found = dict(down_bias_sum=down.bias.sum(), up_bias=up.bias,
                 base_is_as_it_was=[torch.equal(p, old) for p, old in zip(mlp.parameters(), before)],
                 trainable=[p.requires_grad for p in (*down.parameters(), *up.parameters())])
    if probe["init"] == "neurons":
        old = {p.data_ptr() for p in mlp.parameters()}
        return dict(found, adapter_of_four_states=up(torch.nn.functional.gelu(down(x))),
                    norms_of_down_and_up=[down.weight.norm().item(), up.weight.norm().item()],
                    is_a_copy=[w.data_ptr() not in old for w in (down.weight, up.weight, up.bias)])
    def spread(w):
        """(log2(std / 0.02) to a quarter, whether the mean is 0 and the distribution looks normal)."""
        std = w.std().item()
        within = (w.abs() < std).double().mean().item()
        normal = std < 1e-9 or abs(w.mean().item()) < 0.1 * std and abs(within - 0.683) < 0.04
        return (round(4 * math.log2(std / 0.02)) / 4 if std > 1e-9 else -9.0), normal
    spreads = [spread(down.weight.detach()), spread(up.weight.detach())]
    return dict(found, log2_of_std_over_002=[s for s, _ in spreads], normal_with_mean_0=[n for _, n in spreads])

DOWN, UP = "nn.init.normal_(down.weight, std=0.02)", "nn.init.normal_(up.weight, std=0.02)"
MODE, COPY, BIAS = 'if mode != "replace":', 'elif init == "neurons":', "nn.init.zeros_(down.bias)"
ZERO = "nn.init.zeros_(up.weight)"
NORMS, BEST = "w_in.norm(dim=1) * w_out.norm(dim=0)", "importance.topk(down.out_features).indices"
BIAS_IN, BIAS_OUT = "down.bias.copy_(mlp.c_fc.bias[best])", "up.bias.copy_(mlp.c_proj.bias)"
START, NEURONS = "Nothing added at the start", "The neurons of the old MLP"
SAME = "test_adapters.py::test_an_adapter_starts_with_normal_weights_and_up_at_zero_unless_it_replaces"
ALL = "test_adapters.py::test_replace_with_every_neuron_of_the_base_is_the_base"
CHOICE = "test_adapters.py::test_neurons_are_those_with_the_largest_product_of_norms"
MISTAKES = {
    "up is random": Mistake(((ZERO, "pass"),),
        "What does an adapter that only adds put out for any input before its first update?", START, SAME),
    "both at zero": Mistake(((ZERO, "nn.init.zeros_(up.weight)\n        nn.init.zeros_(down.weight)"),),
        "With your start, which of the two weights has a gradient that is not zero?", START, SAME),
    "down at zero for up": Mistake(((ZERO, "nn.init.zeros_(down.weight)"),),
        "Both ways add nothing at the start. Which of the two matrices does the docstring set to zero?", START, SAME),
    "sequential only": Mistake(((MODE, 'if mode == "sequential":'),),
        "Which modes keep the old MLP beside the adapter? What does each of the three put out?", START, SAME),
    "parallel only": Mistake(((MODE, 'if mode == "parallel":'),),
        "Which modes keep the old MLP beside the adapter? What does each of the three put out?", START, SAME),
    "replace at zero too": Mistake(((MODE, 'if mode != "replace" or init == "random":'),),
        "Nothing but the adapter stands in the place of the replaced MLP. What does it put out?", START, SAME),
    "spread of nn.Linear": Mistake(((DOWN, "pass"), (UP, "pass")),
        "Print the std of down.weight. nn.Linear has a start of its own.", START, SAME),
    "the bias of nn.Linear": Mistake(((BIAS, "pass"),),
        "Print down.bias. nn.Linear fills it with random numbers.", START, SAME),
    "small instead of zero": Mistake(((ZERO, "nn.init.normal_(up.weight, std=0.0002)"),),
        "Is the policy equal to the reference at step 0, or only close to it?", START, SAME),
    "neurons at random": Mistake(((COPY, 'elif init == "none":'),),
        "With init neurons and rank = n_inner the adapter computes what the MLP computed. Does yours?", NEURONS, ALL),
    "norms of the inputs": Mistake(((NORMS, "w_in.norm(dim=1)"),),
        "A neuron that reads strongly and writes nothing: how important is it in your order?", NEURONS, CHOICE),
    "norms of the outputs": Mistake(((NORMS, "w_out.norm(dim=0)"),),
        "A neuron that writes strongly and reads nothing: how important is it in your order?", NEURONS, CHOICE),
    "the sum of the norms": Mistake(((NORMS, "w_in.norm(dim=1) + w_out.norm(dim=0)"),),
        "Give one neuron input weights of 0. Where does your order put it, and where the docstring?", NEURONS, CHOICE),
    "the least important": Mistake(((BEST, "importance.topk(down.out_features, largest=False).indices"),),
        "Print the importance of the neurons that you copy and of those that you leave out.", NEURONS, CHOICE),
    "the first neurons": Mistake(((BEST, "torch.arange(down.out_features)"),),
        "Print the importance of the neurons that you copy and of those that you leave out.", NEURONS, CHOICE),
    "one order in, another out": Mistake((("w_out[:, best]", "w_out[:, best.sort().values]"),),
        "Is column i of up the output of the neuron whose input is row i of down?", NEURONS, ALL),
    "c_fc.bias left out": Mistake(((BIAS_IN, "pass"),),
        "A neuron is gelu(w x + b). Which parts of it did you copy?", NEURONS, ALL),
    "c_proj.bias left out": Mistake(((BIAS_OUT, "pass"),),
        "With init neurons and rank = n_inner, what is the difference between the adapter's and the MLP's output?",
        NEURONS, ALL),
    "the first biases": Mistake(((BIAS_IN, "down.bias.copy_(mlp.c_fc.bias[:down.out_features])"),),
        "Does every copied neuron have its own bias, or that of another one?", NEURONS, CHOICE),
}
ALTERNATIVES = {
    "case by case, with .data": '''
def init_adapter(down, up, mlp, mode, init):
    if mode == "replace" and init == "neurons":
        copy_neurons(down, up, mlp)
        return
    down.weight.data.normal_(0, 0.02)
    down.bias.data.zero_()
    up.bias.data.zero_()
    if mode == "replace":
        up.weight.data.normal_(0, 0.02)
    else:
        up.weight.data.zero_()
''',
    "sorted neurons, one by one": '''
def copy_neurons(down, up, mlp):
    n_inner, rank = mlp.c_fc.out_features, down.out_features
    square = [(mlp.c_fc.weight[i] ** 2).sum() * (mlp.c_proj.weight[:, i] ** 2).sum() for i in range(n_inner)]
    best = sorted(range(n_inner), key=lambda i: square[i].item())[-rank:]
    for place, i in enumerate(best):
        down.weight.data[place] = mlp.c_fc.weight[i]
        down.bias.data[place] = mlp.c_fc.bias[i]
        up.weight.data[:, place] = mlp.c_proj.weight[:, i]
    up.bias.data = mlp.c_proj.bias.detach().clone()
''',
}
DOC = "down normal with std 0.02, up and biases zero: the adapter adds 0 until its first update"
BY = "those whose input and output weights have the largest norms."
VARIANTS = {
    "down at zero": ((DOC, "up normal with std 0.02, down and biases zero: the adapter adds 0 until its first update"),
                     (ZERO, "nn.init.zeros_(down.weight)")),
    "by the output weights": ((BY, "those whose output weights have the largest norms."),
                              (NORMS, "w_out.norm(dim=0)")),
}
