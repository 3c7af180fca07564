"""Random models that are edited in known ways, written as real files: the cases on which verdicts are judged.

make(kind, seed, dtype, hidden, folder) writes `base`, `model` and for merges `other`, and returns what was done.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
VOCABULARY = 320
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
WRITERS = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Made:
    """Directories and the kind that is true; `other`: the second reference of a merge."""

    kind: str
    how: str
    model: Path
    base: Path
    other: Path | None = None


class Maker:
    """One case in the making: `base` and `model` in float64, rounded to the stored dtype at the end.

    `hard`: changes near the limits of what can be told, for the calibration of confidences.
    """

    def __init__(self, seed: int, hidden: int, layers: int = 3, hard: bool = False) -> None:
        self.hard = hard
        self.draw = torch.Generator().manual_seed(seed)
        self.hidden, self.layers = hidden, layers
        self.base = self.fresh()
        self.model = {name: tensor.clone() for name, tensor in self.base.items()}
        self.how = ""

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.draw, dtype=torch.float64))

    def between(self, plain: tuple[float, float], hard: tuple[float, float]) -> float:
        return self.uniform(*(hard if self.hard else plain))

    def pick(self, *options):
        return options[int(torch.randint(len(options), (), generator=self.draw))]

    def fresh(self) -> Tensors:
        h, middle = self.hidden, 11 * self.hidden // 4
        found = {"model.embed_tokens.weight": 0.02 * self.normal(VOCABULARY, h)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            shapes = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (h // 2, h), "self_attn.v_proj": (h // 2, h),
                      "self_attn.o_proj": (h, h), "mlp.gate_proj": (middle, h), "mlp.up_proj": (middle, h),
                      "mlp.down_proj": (h, middle)}  # fmt: skip
            found |= {f"{at}{name}.weight": self.matrix(*shape) for name, shape in shapes.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"{at}{norm}.weight"] = 1 + 0.1 * self.normal(h)
        found["model.norm.weight"] = 1 + 0.1 * self.normal(h)
        found["lm_head.weight"] = 0.02 * self.normal(VOCABULARY, h)
        return found

    def matrix(self, out: int, into: int) -> torch.Tensor:
        """Rows of different sizes and a few strong directions, as trained matrices have."""
        rows = (0.25 * self.normal(out, 1)).exp()
        strong = self.normal(out, 8) @ self.normal(8, into) * 0.3 / math.sqrt(8)
        return 0.02 * (rows * self.normal(out, into) + strong)

    @property
    def linears(self) -> list[str]:
        return [name for name in self.base if "_proj" in name]

    def scaled(self, name: str, update: torch.Tensor, relative: float) -> torch.Tensor:
        return update * relative * self.base[name].norm() / update.norm()

    # what is done to the model

    def identical(self) -> None:
        pass

    def lora(self) -> None:
        rank, relative = self.pick(1, 2, 4, 8, 16, 32), self.between((0.01, 0.08), (0.001, 0.01))
        ends = self.pick(("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "o_proj"), ("_proj",))
        self.how = f"rank {rank} {ends}"
        for name in (n for n in self.linears if any(f"{e}.weight" in n for e in ends)):
            out, into = self.base[name].shape
            update = (
                self.normal(out, rank) * torch.linspace(1, 0.5, rank, dtype=torch.float64) @ self.normal(rank, into)
            )
            self.model[name] += self.scaled(name, update, relative)

    def tuned(self) -> None:
        relative, dense = self.uniform(0.01, 0.1), self.between((0.3, 1.0), (1.0, 8.0))
        self.how = f"relative {relative:.3f} dense {dense:.2f}"
        for name, weight in self.base.items():
            if weight.dim() == 1:
                self.model[name] = weight + 0.002 * self.normal(*weight.shape)
                continue
            out, into = weight.shape
            falling = 1 / torch.arange(1, 25, dtype=torch.float64)
            low = self.normal(out, 24) * falling @ self.normal(24, into)
            update = low / low.norm() + dense * self.normal(out, into) / math.sqrt(out * into)
            self.model[name] = weight + self.scaled(name, update, relative)

    def noise(self) -> None:
        relative, shape = self.between((0.01, 0.15), (0.15, 1.5)), self.pick("gaussian", "uniform", "multiplicative")
        self.how = f"{shape} {relative:.3f}"
        for name in self.linears:
            draw = self.normal(*self.base[name].shape)
            if shape == "uniform":
                draw = torch.erf(draw / math.sqrt(2))
            elif shape == "multiplicative":
                draw = draw * self.base[name]
            self.model[name] += self.scaled(name, draw, relative)

    def pruned(self) -> None:
        self.how = how = self.pick("magnitude", "2:4", "4:8", "updated", "rows", "columns")
        share = self.between((0.15, 0.7), (0.005, 0.15))
        for name in self.linears:
            self.model[name] = _pruned(self.model[name], how, share, self)

    def quantised(self) -> None:
        bits, group = self.pick((8, 0), (4, 32), (4, 64), (4, 128), (3, 64), (8, 128), (4, 0), ("nf4", 64), ("fp8", 0))
        self.how = f"{bits} bits groups of {group}"
        for name in self.linears:
            self.model[name] = _quantised(self.model[name], bits, group)

    def abliterated(self) -> None:
        direction = self.normal(self.hidden)
        direction /= direction.norm()
        strength = self.pick(1.0, 1.0, 1.0, self.uniform(0.5, 1.0), self.uniform(1.0, 1.4))
        strength = self.uniform(0.1, 0.5) if self.hard else strength
        first, later = self.pick(0, 0, 1), self.pick(0.0, 0.0, self.between((0.01, 0.05), (0.05, 0.3)))
        self.how = f"strength {strength:.2f} from layer {first}, then fine-tuned by {later:.3f}"
        for name in self.linears:
            if name.split(".")[-2] in WRITERS and int(name.split(".")[2]) >= first:
                self.model[name] -= strength * torch.outer(direction, direction @ self.model[name])
        if later:
            for name in self.linears:
                out, into = self.base[name].shape
                low = self.normal(out, 8) @ self.normal(8, into)
                update = low / low.norm() + 0.5 * self.normal(out, into) / math.sqrt(out * into)
                self.model[name] += self.scaled(name, update, later)

    def edited(self) -> None:
        layer, rank = int(self.uniform(0, self.layers)), self.pick(1, 1, 1, 2)
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        self.how = f"layer {layer} rank {rank}"
        out, into = self.base[name].shape
        update = self.normal(out, rank) @ self.normal(rank, into)
        self.model[name] += self.scaled(name, update, self.between((0.02, 0.3), (0.0005, 0.01)))

    def unrelated(self) -> None:
        self.model = self.fresh()

    def merged(self) -> Tensors:
        """Returns the other parent."""
        before = self.base
        self.tuned()
        other, share = self.model, self.between((0.1, 0.9), (0.005, 0.1))
        self.how = f"share {share:.2f}"
        self.model = {name: before[name] + share * (other[name] - before[name]) for name in before}
        return other

    def unknown(self) -> None:
        names = ("scaled", "permuted", "swapped", "truncated", "rows", "sparse", "flips", "clipped", "signs", "rotated")
        self.how = how = self.pick(*names)
        for name in self.linears:
            self.model[name] = _odd(self.model[name], how, self)
        if how == "swapped":
            for name in self.linears:
                layer = int(name.split(".")[2])
                self.model[name] = self.base[name.replace(f".{layer}.", f".{(layer + 1) % self.layers}.", 1)].clone()

    def unseen(self) -> None:
        """What no kind was written against: the verdict may only be "unknown"."""
        names = ("dare", "dropout", "squashed", "rotated as a whole", "neurons permuted", "blurred",
                 "facts in some layers", "one number", "one row", "a layer twice", "norms")  # fmt: skip
        self.how = how = self.pick(*names)
        if how in PARTIAL:
            PARTIAL[how](self)
        elif how == "dare":
            self.tuned()
            for name in self.linears:
                update = self.model[name] - self.base[name]
                self.model[name] = self.base[name] + update * 10 * (torch.rand(update.shape, generator=self.draw) < 0.1)
            self.how = "dare"
        elif how == "rotated as a whole":
            turn = torch.linalg.qr(self.normal(self.hidden, self.hidden))[0]
            for name, weight in self.model.items():
                if weight.dim() == 2:
                    self.model[name] = turn.T @ weight if name.split(".")[-2] in WRITERS else weight @ turn
        elif how == "neurons permuted":
            for layer in range(self.layers):
                at = f"model.layers.{layer}.mlp."
                order = torch.randperm(11 * self.hidden // 4, generator=self.draw)
                for name in (f"{at}gate_proj.weight", f"{at}up_proj.weight"):
                    self.model[name] = self.model[name][order]
                self.model[f"{at}down_proj.weight"] = self.model[f"{at}down_proj.weight"][:, order]
        else:
            for name in self.linears:
                self.model[name] = _blunted(self.model[name], how, self)


def _facts(made: Maker) -> None:
    """Rank-one updates of several down projections, as facts written one by one leave them."""
    for layer in range(made.pick(2, 3)):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        out, into = made.base[name].shape
        made.model[name] += made.scaled(name, made.normal(out, 1) @ made.normal(1, into), made.uniform(0.02, 0.3))


def _number(made: Maker) -> None:
    """Of one matrix, or of each: as broken memory leaves it, or a bit that was flipped."""
    for name in made.pick(made.linears, made.linears[made.pick(0, 5) :][:1]):
        made.model[name][made.pick(0, 50), made.pick(1, 60)] = made.pick(1e38, -1e30, 3.0)


def _row(made: Maker) -> None:
    for name in made.linears:
        made.model[name][made.pick(3, 40)] *= made.uniform(1.2, 3)


def _twice(made: Maker) -> None:
    for name in made.linears:
        if ".1." in name:
            made.model[name] = made.base[name.replace(".1.", ".0.")].clone()


def _norms(made: Maker) -> None:
    made.model |= {name: w + 0.05 * made.normal(*w.shape) for name, w in made.base.items() if w.dim() == 1}


# What is done to a part of the model.
PARTIAL = {
    "facts in some layers": _facts,
    "one number": _number,
    "one row": _row,
    "a layer twice": _twice,
    "norms": _norms,
}


def _blunted(weight: torch.Tensor, how: str, made: Maker) -> torch.Tensor:
    spread = weight.std()
    if how == "dropout":
        return weight * (torch.rand(weight.shape, generator=made.draw) < 0.9) / 0.9
    if how == "squashed":
        return torch.tanh(weight / (2 * spread)) * 2 * spread
    return 0.8 * weight + 0.2 * weight.roll(1, dims=1)


def _pruned(weight: torch.Tensor, how: str, share: float, made: Maker) -> torch.Tensor:
    out, into = weight.shape
    if how in ("2:4", "4:8"):
        kept, size = map(int, how.split(":"))
        groups = weight.reshape(-1, size)
        lost = groups.abs().argsort(1)[:, : size - kept]
        return groups.scatter(1, lost, 0.0).reshape(out, into)
    if how == "rows":
        return weight * (torch.rand(out, 1, generator=made.draw) > share)
    if how == "columns":
        return weight * (torch.rand(1, into, generator=made.draw) > share)
    mask = weight.abs() > weight.abs().flatten().kthvalue(int(share * weight.numel())).values
    if how == "updated":
        weight = weight + made.normal(out, into) * 0.1 * weight.std()
    return weight * mask


def _quantised(weight: torch.Tensor, bits: int | str, group: int) -> torch.Tensor:
    groups = weight.reshape(-1, group or weight.shape[1])
    top = groups.abs().max(1, keepdim=True).values
    if bits == "nf4":
        levels = torch.erfinv(torch.linspace(-0.96, 0.96, 16, dtype=torch.float64)) / torch.erfinv(torch.tensor(0.96))
        near = (groups / top).unsqueeze(2).sub(levels).abs().argmin(2)
        return (levels[near] * top).reshape(weight.shape)
    if bits == "fp8":
        return ((groups / top * 448).to(torch.float8_e4m3fn).double() * top / 448).reshape(weight.shape)
    assert isinstance(bits, int)
    return by_groups(weight.reshape(1, -1), bits, group).reshape(weight.shape) if group else by_groups(weight, bits, 0)


def by_groups(weight: torch.Tensor, bits: int, group: int, *, ranged: bool = False) -> torch.Tensor:
    """Rounded to an even grid by groups of entries of a row, 0: whole rows; what is left over is a group of its own.

    The grid has one zero in the middle, or `ranged` reaches from the least to the largest value, with a whole zero point.
    """
    parts = weight.split(group or weight.shape[1], dim=1)
    return torch.cat([_on_grid(part, bits, ranged) for part in parts], 1)


def _on_grid(part: torch.Tensor, bits: int, ranged: bool) -> torch.Tensor:
    low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
    if not ranged:
        step = torch.maximum(high, -low) / (2 ** (bits - 1) - 1)
        return (part / step).round() * step
    step = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    return (((part / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step


def _odd(weight: torch.Tensor, how: str, made: Maker) -> torch.Tensor:
    """Changes that no kind stands for."""
    out, into = weight.shape
    if how == "scaled":
        return weight * 1.07
    if how == "permuted":
        return weight[torch.randperm(out, generator=made.draw)]
    if how == "truncated":
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        keep = len(s) * 3 // 4
        return u[:, :keep] * s[:keep] @ v[:keep]
    if how == "rows":
        return weight * (1 + 0.1 * made.normal(out, 1))
    if how == "sparse":
        hit = torch.rand(out, into, generator=made.draw) < 0.02
        return weight + hit * made.normal(out, into) * weight.std()
    if how == "flips":
        hit = torch.rand(out, into, generator=made.draw) < 0.0005
        return torch.where(hit, weight * 64, weight)
    if how == "clipped":
        return weight.clamp(-2 * float(weight.std()), 2 * float(weight.std()))
    if how == "signs":
        return weight * torch.where(torch.rand(out, 1, generator=made.draw) < 0.3, -1.0, 1.0)
    if how == "rotated":
        return torch.linalg.qr(made.normal(out, out))[0] @ weight
    return weight


KINDS = {
    "identical": "identical", "re-sharded or re-typed only": "identical", "quantised round trip": "quantised",
    "pruning": "pruned", "model merge or interpolation": "merged", "single-layer edit": "edited",
    "abliteration": "abliterated", "unrelated model": "unrelated", "LoRA merge": "lora", "noise": "noise",
    "full fine-tuning": "tuned", "unknown": "unknown",
}  # fmt: skip
UNSEEN = "unseen"


def make(kind: str, seed: int, dtype: str, hidden: int, folder: Path, *, hard: bool = False) -> Made:
    """Write one case. Everything follows from the seed."""
    maker = Maker(seed, hidden, hard=hard)
    return written(maker, kind, dtype, folder, getattr(maker, KINDS.get(kind, UNSEEN))())


def written(maker: Maker, kind: str, dtype: str, folder: Path, other: Tensors | None = None) -> Made:
    """Write what a maker has made of its base."""
    write = Writer(folder, DTYPES[dtype], maker)
    base, model = write("base", maker.base), None
    if kind == "re-sharded or re-typed only":
        how = maker.pick("shards", "F16", "BF16", "F32")
        maker.how = how
        if how == "shards" or DTYPES[how] == DTYPES[dtype]:
            maker.how, model = "shards", write("model", maker.model, shards=3)
        else:
            rounded = {name: tensor.to(DTYPES[dtype]) for name, tensor in maker.model.items()}
            model = Writer(folder, DTYPES[how], maker)("model", rounded)
    model = model or write("model", maker.model)
    return Made(kind, maker.how, model, base, None if other is None else write("other", other))


@dataclass(frozen=True)
class Writer:
    """Checkpoints in one dtype under a folder."""

    folder: Path
    dtype: torch.dtype
    maker: Maker

    def __call__(self, name: str, tensors: Tensors, shards: int = 1) -> Path:
        directory = self.folder / name
        directory.mkdir(parents=True)
        stored = {key: tensor.to(self.dtype).contiguous() for key, tensor in tensors.items()}
        files = [f"model-{at + 1:05}-of-{shards:05}.safetensors" for at in range(shards)]
        if shards == 1:
            files = ["model.safetensors"]
        places = {key: files[at * shards // len(stored)] for at, key in enumerate(stored)}
        for file in files:
            save_file(
                {k: v for k, v in stored.items() if places[k] == file}, directory / file, metadata={"format": "pt"}
            )
        if shards > 1:
            (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        h = self.maker.hidden
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": h,
                  "intermediate_size": 11 * h // 4, "num_hidden_layers": self.maker.layers, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "vocab_size": VOCABULARY, "tie_word_embeddings": False}  # fmt: skip
        (directory / "config.json").write_text(json.dumps(config))
        return directory
