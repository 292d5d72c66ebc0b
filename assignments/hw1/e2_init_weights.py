"""
init_weights: the weights before the first update

Random numbers cannot be compared one by one. Each parameter's spread, mean and shape of distribution can.
"""
from assignments.exercise import Mistake

TARGETS = ["model.py:init_weights"]
POINTS, MINUTES = 4, 40

def names(n_layer):
    """The parameters in the model's own order: what the rows of the results are."""
    block = ["ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
             "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
             "mlp.c_proj.bias"]
    return ["wte.weight", "wpe.weight", *(f"h.{i}.{x}" for i in range(n_layer) for x in block), "ln_f.weight",
            "ln_f.bias"]

def probes(rng):
    """Depths 1, 2 and 8, at which sqrt(2 * n_layer) is a power of sqrt(2), and an MLP of another width."""
    return [dict(title=f"{n_layer} layers", n_layer=n_layer, n_inner=n_inner, rows=names(n_layer),
                 seed=int(rng.integers(1, 2**31))) for n_layer, n_inner in ((2, 0), (8, 96), (1, 0))]

def run(module, probe):
    """For each parameter: log2(std / 0.02) to a quarter, whether it looks normal around 0, its value if constant."""
    import math
    import torch
    torch.manual_seed(probe["seed"])
    config = module.GPTConfig(block_size=80, vocab_size=90, n_layer=probe["n_layer"], n_head=4, n_embd=64,
                              n_inner=probe["n_inner"] or None)
    model = module.GPT(config)
    halvings, centered, normal, constant = [], [], [], []
    for p in model.parameters():
        p, std = p.detach().double(), p.detach().double().std().item()
        halvings.append(round(4 * math.log2(std / 0.02)) / 4 if std > 1e-9 else -9.0)
        within = (p.abs() < std).double().mean().item()    # of a normal distribution 0.683
        beyond = (p.abs() > 2.5 * std).double().mean().item()    # 0.0124
        centered.append(p.dim() < 2 or abs(p.mean().item()) < 0.1 * std)
        normal.append(p.dim() < 2 or abs(within - 0.683) < 0.04 and beyond > 0.006 or not centered[-1])
        constant.append(round(p.flatten()[0].item(), 6) if std <= 1e-9 else -9.0)
    return dict(log2_of_std_over_002=halvings, mean_is_0=centered, looks_normal=normal, constant=constant,
                head_is_embedding=[model.lm_head.weight is model.transformer.wte.weight],
                trainable=[p.requires_grad for p in model.parameters()])

OUTER, ROOT = 'if name.endswith("c_proj.weight"):', "math.sqrt(2 * model.config.n_layer)"
MATRIX, BIAS = "elif p.dim() == 2:", 'elif name.endswith("bias"):\n            nn.init.zeros_(p)'
SMALL, OTHER = "std=0.02 /", "nn.init.normal_(p, std=0.02)"
DEPTH, REST = "The residual stream", "All other parameters"
TEST = "test_model.py::test_weights_start_at_std_002_and_the_outputs_of_the_residual_branches_smaller"
MISTAKES = {
    "no smaller outputs": Mistake(((OUTER, "if False:"),),
        "Print the std of h.0.attn.c_proj.weight with 2 layers and with 8. Do they differ?", DEPTH, TEST),
    "one output a block": Mistake(((ROOT, "math.sqrt(model.config.n_layer)"),),
        "How many outputs does one block add to the residual stream? Count the sums in Block.forward.", DEPTH, TEST),
    "no root": Mistake(((ROOT, "(2 * model.config.n_layer)"),),
        "A sum of n independent numbers of std s has which std? Compare n = 4 on paper with yours.", DEPTH, TEST),
    "times the root": Mistake(((SMALL, "std=0.02 *"),),
        "Should the outputs' std grow or shrink with depth?", DEPTH, TEST),
    "only the outputs of attention": Mistake(((OUTER, 'if name.endswith("attn.c_proj.weight"):'),),
        "List the matrices whose result is added to x in Block.forward. Which of them are smaller?", DEPTH, TEST),
    "only the outputs of the MLP": Mistake(((OUTER, 'if name.endswith("mlp.c_proj.weight"):'),),
        "List the matrices whose result is added to x in Block.forward. Which of them are smaller?", DEPTH, TEST),
    "all matrices of a block are smaller": Mistake(((OUTER, 'if ".h." in name and p.dim() == 2:'),),
        "Which matrices of a block write into the residual stream? The others only read it.", DEPTH, TEST),
    "embeddings as PyTorch makes them": Mistake(((MATRIX, 'elif p.dim() == 2 and ".h." in name:'),),
        "Print the std of wte.weight. nn.Embedding begins with a std of 1.", REST, TEST),
    "biases as PyTorch makes them": Mistake(((BIAS, 'elif name.endswith("bias"):\n            pass'),),
        "Print h.0.mlp.c_fc.bias. nn.Linear fills its bias with random numbers.", REST, TEST),
    "LayerNorm at zero": Mistake(((BIAS, "else:\n            nn.init.zeros_(p)"),),
        "Print ln_1.weight of a block. What does a block compute with a weight of 0 there?", REST, TEST),
    "the variance for the std": Mistake(
        ((SMALL, "std=0.02 ** 0.5 /"), (OTHER, "nn.init.normal_(p, std=0.02 ** 0.5)")),
        "Print the std of a matrix. Is it 0.02, or is it the root or the square of it?", REST, TEST),
    "the square for the std": Mistake(
        ((SMALL, "std=0.0004 /"), (OTHER, "nn.init.normal_(p, std=0.0004)")),
        "Print the std of a matrix. Is it 0.02, or is it the root or the square of it?", REST, TEST),
    "a uniform distribution": Mistake(((OTHER, "nn.init.uniform_(p, -0.02 * 3 ** 0.5, 0.02 * 3 ** 0.5)"),),
        "Which share of a matrix's numbers lies within one std of 0? For a normal distribution it is 0.68.", REST),
    "mean 0.02": Mistake(((OTHER, "nn.init.normal_(p, 0.02, 0.02)"),),
        "Print the mean of a matrix. Which argument of nn.init.normal_ is the mean, and which is the std?", REST, TEST),
}
ALTERNATIVES = {
    "by modules": '''
def init_weights(model):
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            last = name.split(".")[-1] == "c_proj"
            module.weight.data.normal_(0.0, 0.02 * ((2 * model.config.n_layer) ** -0.5 if last else 1))
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()
''',
    "by a list of blocks": '''
def init_weights(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(0.02 * torch.randn(p.shape))
        for block in model.transformer.h:
            for out in (block.attn.c_proj, block.mlp.c_proj):
                out.weight.div_(math.sqrt(2 * len(model.transformer.h)))
        for name, p in model.named_parameters():
            if "bias" in name:
                p.fill_(0)
''',
}
FIRST = "GPT-2's initialization: matrices from a normal distribution with std 0.02, biases zero, LayerNorm weights one."
SUM = "Their std is divided by sqrt(2 * n_layer), so that the"
POSITIONS = 'elif name.endswith("wpe.weight"):\n            nn.init.normal_(p, std=0.01)\n        '
VARIANTS = {
    "smaller positions": (
        (FIRST, "Matrices from a normal distribution with std 0.02, wpe with std 0.01; biases 0, LayerNorm weights 1."),
        (MATRIX, POSITIONS + MATRIX)),
    "divided by the depth": ((SUM, "Their std is divided by 2 * n_layer, so that the"),
                             (ROOT, "(2 * model.config.n_layer)")),
}
