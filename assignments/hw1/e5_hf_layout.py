"""
to_hf, from_hf: the layout of Hugging Face's files

Two functions that rename nothing, turn four matrices of each block, and leave out or restore the tied head.
"""
from assignments.exercise import Mistake

TARGETS = ["model.py:to_hf", "model.py:from_hf"]
POINTS, MINUTES = 5, 50

def names(n_layer, kind):
    """The tensors of a state_dict: what the rows of the results are."""
    block = [f"{part}.{end}" for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
             for end in ("weight", "bias")]
    blocks = [f"h.{i}.{x}" for i in range(n_layer) for x in block]
    inner = ["wte.weight", "wpe.weight", *blocks, "ln_f.weight", "ln_f.bias"]
    return [f"transformer.{x}" for x in inner] + ["lm_head.weight"] + ["score.weight"] * (kind == "ScalarGPT")

def probes(rng):
    """Square matrices only, another width of the MLP, a file in float64, and a reward model with its score."""
    def case(title, n_layer, n_embd, n_inner=0, kind="GPT", dtype="float32"):
        return dict(title=title, n_layer=n_layer, n_embd=n_embd, n_inner=n_inner, kind=kind, dtype=dtype,
                    rows=names(n_layer, kind), seed=int(rng.integers(1, 2**31)))
    return [case("an MLP as wide as the model", 1, 6, 6), case("two layers", 2, 4),
            case("a file in float64", 1, 4, 10, dtype="float64"), case("a reward model", 1, 4, kind="ScalarGPT")]

def run(module, probe):
    """Shape and a weighted sum of every tensor, by name, and facts: dtypes, shared memory, what became of the input."""
    import torch
    torch.manual_seed(probe["seed"])
    config = module.GPTConfig(block_size=5, vocab_size=7, n_layer=probe["n_layer"], n_head=2, n_embd=probe["n_embd"],
                              n_inner=probe["n_inner"] or None)
    model = getattr(module, probe["kind"])(config)
    state = {name: torch.randn(x.shape) for name, x in model.state_dict().items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    turned = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    file = {name: (x.t().contiguous() if name.endswith(turned) else x.clone()).to(getattr(torch, probe["dtype"]))
            for name, x in state.items() if name != "lm_head.weight"}
    before = len(state), len(file)
    def facts(way, found, given):
        shapes, sums, pointers = [], [], {x.data_ptr() for x in given.values()}
        for name in probe["rows"]:
            x = found[name].detach().double() if name in found else torch.zeros(0)    # a name that is not there: 0
            shapes.append([*x.shape, 0][:2])
            sums.append((x.flatten() * torch.arange(1, x.numel() + 1).cos()).sum().item())
        shared = sum(x.data_ptr() in pointers for x in found.values())
        return {f"{way}: shapes": torch.tensor(shapes), f"{way}: weighted sums": sums,
                f"{way}: names that should not be there": len(found.keys() - set(probe["rows"])),
                f"{way}: tensors in float32": sum(x.dtype == torch.float32 for x in found.values()),
                f"{way}: tensors that share memory with the input": shared}
    theirs = facts("to_hf", module.to_hf(state), state)
    ours = facts("from_hf", module.from_hf(file), file)
    return theirs | ours | {"new entries of the input": [len(state) - before[0], len(file) - before[1]]}

TURN, NO_HEAD = "x.t() if name.endswith(CONV1D) else x", ' if name != "lm_head.weight"}'
BACK, COPY = "            x = x.t()\n", "ours[name] = x.to(torch.float32, copy=True).contiguous()"
HEAD, COND = '    ours["lm_head.weight"] = ours["transformer.wte.weight"]\n', "        if name.endswith(CONV1D):\n"
SHAPES, TIED, MEMORY = "Four matrices a block", "The tied head", "Memory and dtype"
LAYOUT = "test_model.py::test_hugging_faces_layout_by_hand"
MISTAKES = {
    "nothing turned on the way out": Mistake(((TURN, "x"),),
        "Compare mlp.c_fc.weight before and after to_hf. Which shape do (in, out) and (out, in) give?", SHAPES, LAYOUT),
    "nothing turned on the way in": Mistake(((BACK, "            pass\n"),),
        "Is from_hf(to_hf(state)) equal to state? Look at mlp.c_fc.weight.", SHAPES, LAYOUT),
    "nothing turned at all": Mistake(((TURN, "x"), (BACK, "            pass\n")),
        "A round trip is perfect if both ways are wrong alike. What does the docstring say of Conv1D?", SHAPES, LAYOUT),
    "every matrix turned": Mistake(((TURN, "x.t() if x.dim() == 2 else x"), (COND, "        if x.dim() == 2:\n")),
        "Is wte.weight a matrix of a block? List the names that the docstring means.", SHAPES, LAYOUT),
    "every matrix of a block and the head of a reward": Mistake(
        ((TURN, 'x.t() if name.endswith(CONV1D) or name == "score.weight" else x'),
         (COND, '        if name.endswith(CONV1D) or name == "score.weight":\n')),
        "Is the score of a reward model one of the four matrices of a block?", SHAPES),
    "only matrices that are not square": Mistake(
        ((TURN, "x.t() if name.endswith(CONV1D) and x.shape[0] != x.shape[1] else x"),
         (COND, "        if name.endswith(CONV1D) and x.shape[0] != x.shape[1]:\n")),
        "Does a square matrix look the same after it is turned? Print attn.c_proj.weight.", SHAPES, LAYOUT),
    "attn.c_proj forgotten": Mistake(
        ((TURN, 'x.t() if name.endswith(CONV1D) and "attn.c_proj" not in name else x'),
         (COND, '        if name.endswith(CONV1D) and "attn.c_proj" not in name:\n')),
        "Count the matrices that you turn in one block. Its square one is easily forgotten.", SHAPES, LAYOUT),
    "reshaped on both ways": Mistake(
        ((TURN, "x.reshape(x.shape[::-1]) if name.endswith(CONV1D) else x"),
         (BACK, "            x = x.reshape(x.shape[::-1])\n")),
        "Turn the matrix [[1, 2, 3], [4, 5, 6]] with your code. Is the first row 1, 4?", SHAPES, LAYOUT),
    "the head is stored": Mistake(((NO_HEAD, "}"),),
        "Which tensor is not in Hugging Face's file? Count the entries.", TIED, LAYOUT),
    "the head is taken from the input": Mistake(
        ((NO_HEAD, "} if state.pop('lm_head.weight') is not None else {}"),),
        "Print the names in the state that you passed in, before and after the call.", TIED),
    "no head on the way in": Mistake(((HEAD, ""),),
        "Which name must a state_dict of GPT have that the file does not?", TIED, LAYOUT),
    "the head is turned": Mistake(((HEAD, '    ours["lm_head.weight"] = ours["transformer.wte.weight"].t()\n'),),
        "Print the shape of lm_head.weight: (V, C), as nn.Linear stores it and as nn.Embedding does.", TIED, LAYOUT),
    "the embedding is gone": Mistake(((HEAD, '    ours["lm_head.weight"] = ours.pop("transformer.wte.weight")\n'),),
        "Are both names of the tied matrix in your result?", TIED, LAYOUT),
    "to_hf copies": Mistake(((TURN, "x.t().clone() if name.endswith(CONV1D) else x.clone()"),),
        "What does the docstring of to_hf say about copies? A large model would need its memory twice.", MEMORY),
    "from_hf does not copy": Mistake(((COPY, "ours[name] = x.to(torch.float32)"),),
        "Change the file's tensor in place after from_hf. Does yours change with it?", MEMORY, LAYOUT),
    "the dtype of the file": Mistake(((COPY, "ours[name] = x.clone()"),),
        "Read a file in float64. Which dtype do your tensors have?", MEMORY, LAYOUT),
    "the input is filled": Mistake(
        ((HEAD, HEAD + '    state["lm_head.weight"] = state["transformer.wte.weight"]\n'),),
        "Print the names in the state that you passed in, before and after the call.", TIED),
}
ALTERNATIVES = {
    "two loops": '''
def to_hf(state):
    theirs = {}
    for name in state:
        if name == "lm_head.weight":
            continue
        part = name.split(".")[-2:]
        turned = part[-1] == "weight" and part[0] in ("c_attn", "c_proj", "c_fc")
        theirs[name] = state[name].transpose(0, 1) if turned else state[name]
    return theirs

def from_hf(state):
    ours = {name: x.detach().clone().float() for name, x in state.items()}
    for name in list(ours):
        if any(name.endswith(end) for end in CONV1D):
            ours[name] = ours[name].T
    ours["lm_head.weight"] = ours["transformer.wte.weight"].clone()
    return ours
''',
    "copied into empty tensors": '''
def from_hf(state):
    def read(name, x):
        shape = tuple(reversed(x.shape)) if name.endswith(CONV1D) else x.shape
        return torch.empty(shape, dtype=torch.float32).copy_(x.mT if name.endswith(CONV1D) else x)
    found = {name: read(name, x) for name, x in state.items()}
    return found | {"lm_head.weight": found["transformer.wte.weight"]}
''',
}
FOUR = "Two things differ. Hugging Face's Conv1D stores the four matrices of a block as (in, out),"
TWO = "nn.Linear as (out, in). And the tied head is not stored, since it is the embedding."
ALONE = "The model's state_dict -> the tensors of Hugging Face's file, name -> tensor. Nothing is copied."
VARIANTS = {
    "the positions turned too": (
        (FOUR, "Three things differ. The four matrices of a block (CONV1D) are stored as (in, out),"),
        (TWO, "nn.Linear has (out, in). The embedding of the positions, transformer.wpe.weight, is stored as\n"
              "    (C, block_size). And the tied head is not stored, since it is the embedding."),
        (ALONE, ALONE.replace("Hugging Face's file", "the file")),
        (TURN, 'x.t() if name.endswith((*CONV1D, "wpe.weight")) else x'),
        (COND, '        if name.endswith((*CONV1D, "wpe.weight")):\n')),
    "values before keys and queries": (
        (FOUR, "Three things differ. The four matrices of a block (CONV1D) are stored as (in, out),"),
        (TWO, "nn.Linear has (out, in). The 3 C outputs of attn.c_attn, in its weight and in its bias, are those of "
              "q, k, v\n    in the model and of v, k, q in the file. And the tied head is not stored, since it is the "
              "embedding."),
        (ALONE, "The model's state_dict -> the tensors of the file, name -> tensor. Copies c_attn only, for its other "
                "order."),
        (TURN, '(torch.cat(x.chunk(3)[::-1]) if ".c_attn." in name else x).t() if name.endswith(CONV1D) else '
               '(torch.cat(x.chunk(3)[::-1]) if ".c_attn." in name else x)'),
        (BACK, BACK + '        if ".c_attn." in name:\n            x = torch.cat(x.chunk(3)[::-1])\n')),
}
