"""
AdaptedMLP.forward, AdaptedMLP.bottleneck: what an adapter computes

Three ways to put a bottleneck after, beside, or in place of an MLP, and the switch that turns it off.
"""
from assignments.exercise import Mistake

TARGETS = ["adapters.py:AdaptedMLP.bottleneck", "adapters.py:AdaptedMLP.forward"]
POINTS, MINUTES = 4, 40

def probes(rng):
    """The three modes, on and off, one row, and an adapter as wide as the model."""
    def case(mode, on, shape, rank, title):
        return dict(title=title, mode=mode, on=on, rank=rank, x=rng.normal(0, 1, shape), y=rng.normal(0, 1, shape),
                    seed=int(rng.integers(1, 2**31)))
    return [case("sequential", 1, (2, 3, 8), 5, "sequential"), case("parallel", 1, (2, 3, 8), 5, "parallel"),
            case("replace", 1, (2, 3, 8), 5, "replace"), case("sequential", 1, (1, 1, 8), 8, "one token, rank 8"),
            case("sequential", 0, (2, 2, 8), 5, "turned off"), case("replace", 0, (2, 2, 8), 5, "replace, turned off")]

def run(module, probe):
    """The output, the gradient of the input, those of the adapter, and how often the old MLP is computed."""
    import torch
    from model import MLP, GPTConfig
    torch.manual_seed(probe["seed"])
    base = MLP(GPTConfig(n_embd=8, n_head=1)).double()
    adapter = module.AdaptedMLP(base, probe["mode"], probe["rank"], "random").double()
    with torch.no_grad():
        for p in adapter.parameters():
            p.normal_(0, 0.7)
    adapter.on = bool(probe["on"])
    calls = []
    base.register_forward_hook(lambda *_: calls.append(1))
    x = probe["x"].requires_grad_()
    y = adapter(x)
    own = [adapter.down.weight, adapter.down.bias, adapter.up.weight, adapter.up.bias]
    grads = torch.autograd.grad(y, [x, *own], probe["y"], allow_unused=True)
    zero = torch.zeros(1).double()
    names = ("grad_x", "grad_down", "grad_down_bias", "grad_up", "grad_up_bias")
    return dict({name: zero if g is None else g for name, g in zip(names, grads)}, y=y, calls_of_the_mlp=len(calls))

GELU, OFF = 'F.gelu(self.down(x), approximate="tanh")', "        if not self.on:\n            return self.base(x)\n"
ONLY, BOTH = "            return self.bottleneck(x)\n", 'y + self.bottleneck(y if self.mode == "sequential" else x)'
REPLACE, LINE = '        if self.mode == "replace":\n', "        y = self.base(x)\n"
MODES, BOTTLENECK, SWITCH = "Three modes", "The bottleneck", "The switch"
HAND = "test_adapters.py::test_each_mode_is_its_formula_by_hand"
SWITCHED = "test_adapters.py::test_with_adapters_off_the_model_is_the_base_bit_for_bit_and_then_itself_again"
MISTAKES = {
    "the exact GELU": Mistake(((GELU, "F.gelu(self.down(x))"),),
        "Compute the GELU of -2 by your code, to five digits. The model's MLP gives -0.04540.", BOTTLENECK),
    "no GELU": Mistake(((GELU, "self.down(x)"),),
        "Double the input of your bottleneck, with biases of 0. Does the output double?", BOTTLENECK, HAND),
    "ReLU": Mistake(((GELU, "F.relu(self.down(x))"),),
        "Which function stands between down and up in the docstring of the file?", BOTTLENECK, HAND),
    "GELU after up": Mistake((("self.up(" + GELU + ")", 'F.gelu(self.up(self.down(x)), approximate="tanh")'),),
        "Can your bottleneck put out a number below -0.2?", BOTTLENECK, HAND),
    "two GELUs": Mistake((("self.up(" + GELU + ")", f'F.gelu(self.up({GELU}), approximate="tanh")'),),
        "Can your bottleneck put out a number below -0.2?", BOTTLENECK, HAND),
    "the input is added inside": Mistake((("self.up(" + GELU + ")", f"x + self.up({GELU})"),),
        "Set up and its bias to zero. What does your bottleneck put out?", BOTTLENECK, HAND),
    "sequential reads the input": Mistake(((BOTH, "y + self.bottleneck(x)"),),
        "What does the bottleneck read in the mode sequential, and what in parallel? Print both.", MODES, HAND),
    "parallel reads the output": Mistake(((BOTH, "y + self.bottleneck(y)"),),
        "What does the bottleneck read in the mode parallel? Does it depend on the old MLP?", MODES, HAND),
    "the modes are swapped": Mistake(((BOTH, 'y + self.bottleneck(x if self.mode == "sequential" else y)'),),
        "Which of the two modes gives an adapter that reads what the MLP has written?", MODES, HAND),
    "the MLP's output is lost": Mistake(((BOTH, 'self.bottleneck(y if self.mode == "sequential" else x)'),),
        "Set up and its bias to zero in the mode sequential. Does the old MLP's output come out?", MODES, HAND),
    "the input is added": Mistake(((BOTH, 'x + y + self.bottleneck(y if self.mode == "sequential" else x)'),),
        "Where is the residual connection around the MLP: here or in Block.forward?", MODES, HAND),
    "replace adds": Mistake(((REPLACE, '        if self.mode == "none":\n'),),
        "In the mode replace, does your result depend on the weights of the old MLP?", MODES, HAND),
    "replace computes the old MLP too": Mistake(((ONLY, "            return self.bottleneck(x) + 0 * self.base(x)\n"),),
        "Count the calls of the old MLP in the mode replace. Which time does it save?", MODES,
        "test_flags.py::test_replace_does_not_compute_the_old_mlp"),
    "the MLP twice": Mistake(((BOTH, 'y + self.bottleneck(self.base(x) if self.mode == "sequential" else x)'),),
        "Count the calls of the old MLP in one forward pass. Its result can be kept.", MODES),
    "cut from the graph": Mistake(((LINE, "        y = self.base(x).detach()\n"),),
        "The old MLP is frozen. Does the gradient still pass through it to the blocks below?", MODES),
    "no switch": Mistake(((OFF, ""),),
        "Set on to False. Is the result that of the old MLP?", SWITCH, SWITCHED),
    "off gives the input back": Mistake(((OFF, "        if not self.on:\n            return x\n"),),
        "Inside adapters_off the model computes what it did before add_adapters. What stood in this place?", SWITCH,
        SWITCHED),
    "replace cannot be turned off": Mistake(
        ((OFF, OFF.replace("not self.on", 'not self.on and self.mode != "replace"')),),
        "Set on to False in the mode replace. Is the result that of the old MLP?", SWITCH, SWITCHED),
}
ALTERNATIVES = {
    "a sum of parts": '''
class AdaptedMLP(nn.Module):
    def bottleneck(self, x):
        z = x @ self.down.weight.T + self.down.bias
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
        return z @ self.up.weight.T + self.up.bias

    def forward(self, x):
        base = self.base(x) if self.mode != "replace" or not self.on else 0
        if self.on:
            base = base + self.bottleneck({"sequential": base}.get(self.mode, x))
        return base
'''.replace("class", "import math\n\nclass", 1),
    "one branch a mode": '''
class AdaptedMLP(nn.Module):
    def bottleneck(self, x):
        return self.up(nn.GELU(approximate="tanh")(self.down(x)))

    def forward(self, x):
        if self.on and self.mode == "parallel":
            return self.base(x) + self.bottleneck(x)
        if self.on and self.mode == "sequential":
            read = self.base(x)
            return self.bottleneck(read) + read
        return self.bottleneck(x) if self.on else self.base(x)
''',
}
DOC = "The trained part: (B, T, C) -> (B, T, rank) -> (B, T, C)."
VARIANTS = {
    "SiLU": ((DOC, "The trained part, with SiLU in the place of GELU: (B, T, C) -> (B, T, rank) -> (B, T, C)."),
             (GELU, "F.silu(self.down(x))")),
    "half of it": ((DOC, "The trained part, with the factor 1/2 after up: (B, T, C) -> (B, T, rank) -> (B, T, C)."),
                   ("return self.up(" + GELU + ")", "return 0.5 * self.up(" + GELU + ")")),
}
