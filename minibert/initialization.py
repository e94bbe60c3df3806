"""Where the starting weights come from: the schemes of --init.

A scheme is a short function that gives every tensor of the encoder its start and says of each where it came from. The
head is always newly drawn, from a seed of its own. N is the number of layers, counted from 1 at the embeddings.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minibert.checkpoint import load_weights
from minibert.config import is_count
from minibert.errors import InputError
from minibert.model import Bert, BertClassifier, BertConfig, init_weights
from minibert.seeds import Seeds, derive

MOST_EPOCHS = 10_000  # of self-mlm

# name of a tensor -> {"source", "mean", "std", "sha256"}. Sources: pretrained, permuted, drawn, self-mlm, buffer; of a
# head of one's own also reset_parameters (drawn by it) and constructor (left as it was made).
Manifest = dict[str, dict[str, str | float]]
Origins = dict[str, str]  # name of a tensor of the encoder -> its source


@dataclass(frozen=True)
class Start:
    """What a scheme gets: the encoder to fill, a checkpoint's folder, a stream of random numbers, the numbers behind
    its colon, and the tensors that were trained for it.
    """

    bert: Bert
    checkpoint: Path
    generator: torch.Generator
    numbers: tuple[float, ...]
    learned: Mapping[str, Tensor]


def pretrained(start: Start) -> Origins:
    """Every tensor from the checkpoint."""
    load_weights(start.bert, start.checkpoint)
    return dict.fromkeys(start.bert.state_dict(), "pretrained")


def random(start: Start) -> Origins:
    """N(0, 0.02) matrices, zero biases, LayerNorm 1 and 0 (Devlin et al. 2018), as ports of BERT draw them."""
    draw(start.bert, start.bert.config.initializer_range, start.generator)
    return dict.fromkeys(start.bert.state_dict(), "drawn")


def truncated(start: Start) -> Origins:
    """As random, but nothing beyond two sigma, as BERT's own code draws (google-research/bert, modeling.py)."""
    origins = random(start)
    std = start.bert.config.initializer_range
    for tensor in start.bert.parameters():
        if tensor.dim() >= 2:
            nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=start.generator)
    word = start.bert.embeddings.word
    word.weight[word.padding_idx] = 0
    return origins


def xavier(start: Start) -> Origins:
    """The layers' and the pooler's matrices N(0, 2 / (in + out)) (Glorot and Bengio 2010), the embeddings as random."""
    origins = random(start)
    for name, tensor in start.bert.named_parameters():
        if tensor.dim() == 2 and not name.startswith("embeddings."):
            for part in tensor.detach().chunk(3 if "qkv" in name else 1):  # query, key and value are a matrix each
                nn.init.xavier_normal_(part, generator=start.generator)
    return origins


def mimetic(start: Start) -> Origins:
    """Attention that starts as trained attention looks: W_Q W_K^T near +I in each head, W_O W_V near -I.

    Trockman and Kolter 2023 (arXiv:2305.09828), with their numbers for vision, 0.7 and 0.4; they found other signs in
    language models. The rest as random.
    """
    origins = random(start)
    width, heads = start.bert.config.hidden_size, start.bert.config.num_attention_heads

    def factors(noise: float, identity: float) -> tuple[Tensor, Tensor]:
        """A, B (D, D) with A B^T = noise Z + identity I, Z from N(0, 1/D)."""
        z = torch.randn(width, width, generator=start.generator) / math.sqrt(width)
        u, s, vh = torch.linalg.svd(noise * z + identity * torch.eye(width))
        return u * s.sqrt(), vh.T * s.sqrt()

    for layer in start.bert.layers:
        query, key, value = layer.attention.qkv.weight.detach().chunk(3)  # each (D, D), a head a run of rows
        for q, k in zip(query.chunk(heads), key.chunk(heads)):
            a, b = factors(0.7, 0.7)
            q.copy_(a[:, : len(q)].T)  # the largest singular values, as many as the head is wide
            k.copy_(b[:, : len(k)].T)
        a, b = factors(0.4, -0.4)
        layer.attention.output.weight.detach().copy_(a)
        value.copy_(b.T)
    return origins


def reinit(start: Start) -> Origins:
    """Pretrained, but the top K layers and the pooler drawn anew (Zhang et al. 2021, arXiv:2006.05987)."""
    lowest_new = start.bert.config.num_hidden_layers - start.numbers[0] + 1
    return keep(start, lambda name: not name.startswith("pooler.") and (layer_of(name) or 0) < lowest_new)


def layers(start: Start) -> Origins:
    """Layers I to J pretrained, the rest random (Tamkin et al. 2020, arXiv:2004.14975)."""
    low, high = start.numbers
    return keep(start, lambda name: low <= (layer_of(name) or 0) <= high)


def embeddings(start: Start) -> Origins:
    """The embeddings pretrained, the rest random (Tamkin et al. 2020)."""
    return keep(start, lambda name: name.startswith("embeddings."))


def encoder(start: Start) -> Origins:
    """All layers pretrained, embeddings and pooler random (Tamkin et al. 2020)."""
    return keep(start, lambda name: layer_of(name) is not None)


def no_pooler(start: Start) -> Origins:
    """Pretrained, but the pooler, which pretraining trained for another task, drawn anew (Zhang et al. 2021)."""
    return keep(start, lambda name: not name.startswith("pooler."))


def shuffle(start: Start) -> Origins:
    """Control: the entries of each pretrained tensor in random order. The same values, none of the structure."""
    load_weights(start.bert, start.checkpoint)
    for tensor in start.bert.state_dict().values():
        order = torch.randperm(tensor.numel(), generator=start.generator)
        tensor.copy_(tensor.flatten()[order].view_as(tensor))
    return dict.fromkeys(start.bert.state_dict(), "permuted")


def permute_layers(start: Start) -> Origins:
    """Control: the pretrained layers, each whole, in another order."""
    load_weights(start.bert, start.checkpoint)
    count = len(start.bert.layers)
    order = list(range(count))
    while order == list(range(count)):
        order = torch.randperm(count, generator=start.generator).tolist()
    start.bert.layers = nn.ModuleList(start.bert.layers[i] for i in order)
    return {name: "pretrained" if layer_of(name) is None else "permuted" for name in start.bert.state_dict()}


def moments(start: Start) -> Origins:
    """Control: each tensor drawn from a normal distribution with the pretrained one's mean and standard deviation.

    The statistics alone, as Lu et al. 2021 (arXiv:2103.05247) tried them.
    """
    load_weights(start.bert, start.checkpoint)
    for tensor in start.bert.state_dict().values():
        nn.init.normal_(tensor, tensor.mean().item(), tensor.std(correction=0).item(), generator=start.generator)
    return dict.fromkeys(start.bert.state_dict(), "drawn")


def self_mlm(start: Start) -> Origins:
    """Masked-language-model training on the task's own training texts (Krishna et al. 2022, arXiv:2209.14389), which
    training/mlm.py does; the pooler, which it does not reach, as random.
    """
    origins = random(start)
    for name, tensor in start.learned.items():
        start.bert.get_parameter(name).copy_(tensor)
        origins[name] = "self-mlm"
    return origins


def deepnorm(start: Start) -> Origins:
    """LN(a x + F(x)) with a = (2N)^(1/4); V, W_O and both feed-forward matrices Xavier with gain (8N)^(-1/4), Q and K
    with gain 1 (Wang et al. 2022, arXiv:2203.00555, for an encoder alone). Embeddings and pooler as random.
    """
    origins = random(start)
    gain = (8 * len(start.bert.layers)) ** -0.25
    for layer in start.bert.layers:
        query, key, value = layer.attention.qkv.weight.chunk(3)
        for tensor in (query, key):
            nn.init.xavier_normal_(tensor, generator=start.generator)
        for tensor in (value, *(m.weight for m in (layer.attention.output, *layer.feed_forward.children()))):
            nn.init.xavier_normal_(tensor, gain, generator=start.generator)
    return origins


def deepnorm_layer(count: int) -> dict[str, float | str | bool]:
    return {"residual_scale": (2 * count) ** 0.25}


def gated(start: Start) -> Origins:
    """As random, in layers x + g F(x) with a learned g: 0 at first (ReZero, Bachlechner et al. 2020, arXiv:2003.04887),
    or one g a channel that starts small (LayerScale, Touvron et al. 2021, arXiv:2103.17239). BERT's LayerNorms stay.
    """
    origins = random(start)
    for name, tensor in start.bert.named_parameters():
        if "_gate." in name:
            nn.init.constant_(tensor, start.numbers[0] if start.numbers else 0.0)
    return origins


@dataclass(frozen=True)
class Scheme:
    apply: Callable[[Start], Origins]
    needs_weights: bool = True  # False: of the checkpoint only config.json is read
    form: str = ""  # of what stands behind its colon: "K", "I-J", "G", "E"
    layer: Callable[[int], dict[str, float | str | bool]] = lambda count: {}  # N -> the config's fields that it changes
    learns: bool = False  # True: it takes tensors that were trained for it


SCHEMES = {
    "pretrained": Scheme(pretrained),
    "random": Scheme(random, needs_weights=False),
    "random:truncated": Scheme(truncated, needs_weights=False),
    # What learned at lr 1e-4 and batch 2 where 12 layers of plain random went blind (docs/log.md, Starting weights).
    "random:deep": Scheme(deepnorm, False, layer=lambda count: {**deepnorm_layer(count), "pool": "mean"}),
    "xavier": Scheme(xavier, needs_weights=False),
    "mimetic": Scheme(mimetic, needs_weights=False),
    "reinit": Scheme(reinit, form="K"),
    "layers": Scheme(layers, form="I-J"),
    "embeddings": Scheme(embeddings),
    "encoder": Scheme(encoder),
    "no-pooler": Scheme(no_pooler),
    "shuffle": Scheme(shuffle),
    "permute-layers": Scheme(permute_layers),
    "moments": Scheme(moments),
    "self-mlm": Scheme(self_mlm, False, "E", learns=True),
    "deepnorm": Scheme(deepnorm, False, layer=deepnorm_layer),
    # Admin in closed form (Liu et al. 2020, arXiv:2004.08249, with all branches of equal variance): 2.601 at N = 12.
    "admin": Scheme(
        random, False, layer=lambda count: {"residual_scale": math.sqrt((2 * count + 1) / math.log(2 * count + 1) - 1)}
    ),
    "layerscale": Scheme(gated, False, "G", layer=lambda count: {"branch_gate": "channel"}),
    "rezero": Scheme(gated, False, layer=lambda count: {"branch_gate": "scalar"}),
    "prenorm": Scheme(random, False, layer=lambda count: {"norm_first": True}),  # Xiong et al. 2020, arXiv:2002.04745
}


def forms() -> list[str]:
    """The schemes as they are written: "pretrained", "reinit:K", ..."""
    return [f"{name}:{scheme.form}" if scheme.form else name for name, scheme in SCHEMES.items()]


@dataclass(frozen=True)
class Init:
    """What --init says: `text` as it was written, its scheme, and what stands behind the colon ("": nothing)."""

    text: str
    scheme: Scheme
    argument: str = ""

    @classmethod
    def parse(cls, text: str) -> Init:
        """
        Raises:
            InputError: no such scheme.
        """
        if text in SCHEMES:
            return cls(text, SCHEMES[text])
        name, _, argument = text.partition(":")
        if name not in SCHEMES or not SCHEMES[name].form:
            raise InputError(f"--init {text}: no such scheme; known: {', '.join(forms())}")
        return cls(text, SCHEMES[name], argument)

    def numbers(self, config: BertConfig) -> tuple[float, ...]:
        """The numbers of "reinit:K" (1 to N), "layers:I-J" (1 <= I <= J <= N), "layerscale:G" (0 to 1) and "self-mlm:E"
        (from 1 to MOST_EPOCHS); none for the others.

        Raises:
            InputError: out of bounds for this config, or another form.
        """
        form, argument, count = self.scheme.form, self.argument, config.num_hidden_layers
        if self.scheme is SCHEMES["permute-layers"] and count < 2:
            raise InputError(f"--init {self.text}: a model of one layer has no other order")
        if not form:
            return ()
        if form == "K" and is_count(argument) and 1 <= int(argument) <= count:
            return (int(argument),)
        pair = re.fullmatch(r"(\d{1,9})-(\d{1,9})", argument)
        if form == "I-J" and pair and 1 <= int(pair[1]) <= int(pair[2]) <= count:
            return int(pair[1]), int(pair[2])
        if form == "G":
            try:
                if 0 <= float(argument) <= 1:
                    return (float(argument),)
            except ValueError:
                pass
            raise InputError(f"--init {self.text}: write layerscale:G with G from 0 to 1, such as layerscale:0.1")
        if form == "E":
            if is_count(argument) and 1 <= int(argument) <= MOST_EPOCHS:
                return (int(argument),)
            raise InputError(
                f"--init {self.text}: write self-mlm:E with a whole number of epochs from 1 to {MOST_EPOCHS:,}, such as"
                " self-mlm:10"
            )
        raise InputError(
            f"--init {self.text}: this model has layers 1 to {count}; write "
            + (f"reinit:K with K from 1 to {count}" if form == "K" else f"layers:I-J, such as layers:1-{count}")
        )


def layer_config(init: Init, config: BertConfig) -> BertConfig:
    """The config with the layers that the scheme needs: BERT's own for most.

    Raises:
        InputError: a layer that is not there; a checkpoint whose layers are already others.
    """
    if not config.is_bert:
        raise InputError(
            f"--init {init.text}: the checkpoint's layers are not BERT's; a scheme starts from a plain BERT"
        )
    init.numbers(config)
    return replace(config, **init.scheme.layer(config.num_hidden_layers))


def initialize(
    model: BertClassifier, init: Init, checkpoint: Path, seeds: Seeds, learned: Mapping[str, Tensor] | None = None
) -> Manifest:
    """Give every tensor of `model` its start, in place.

    Args:
        init: `model` was built with its `layer_config`.
        checkpoint: the folder of a checkpoint with the model's own sizes.
        seeds: `encoder` and `head` are used.
        learned: the tensors that "self-mlm" takes, and it alone: `training.mlm.self_mlm` trains them.

    Returns:
        The manifest: for each tensor its source, mean, standard deviation and hash.

    Raises:
        InputError: a layer that is not there, or a checkpoint that does not fit (see load_weights).
        ValueError: `learned` is missing.
    """
    numbers = init.numbers(model.config)
    if init.scheme.learns and learned is None:
        raise ValueError(f"{init.text} starts from tensors that training.mlm.self_mlm gives; pass them as `learned`")
    with torch.no_grad():
        start = Start(model.bert, checkpoint, stream(seeds.encoder, "encoder"), numbers, learned or {})
        origins = init.scheme.apply(start)
        with torch.random.fork_rng(devices=[]):  # a head's own reset_parameters knows no generator
            torch.manual_seed(derive(seeds.head, "head's own"))
            of_head = draw_head(model.head, model.config.initializer_range, stream(seeds.head, "head"))
    buffers = {name for name, _ in model.named_buffers()}  # of a head: nothing draws them
    manifest: Manifest = {}
    for name, tensor in model.state_dict().items():
        other = "buffer" if name in buffers else of_head.get(name.removeprefix("head."))
        figures = tensor if tensor.is_floating_point() else tensor.double()  # whole numbers have no mean of their kind
        manifest[name] = {
            "source": origins[name.removeprefix("bert.")] if name.startswith("bert.") else other,
            "mean": figures.mean().item(),
            "std": figures.std(correction=0).item(),
            "sha256": hashlib.sha256(tensor.contiguous().numpy()).hexdigest(),
        }
    return manifest


def summary(manifest: Manifest) -> str:
    """How many tensors came from where; the newly drawn ones by name where they are few."""
    names: dict[str, list[str]] = {}
    for name, entry in manifest.items():
        names.setdefault(str(entry["source"]), []).append(name)
    parts = [f"{len(group)} tensor{'s' * (len(group) > 1)} {in_words(source)}" for source, group in names.items()]
    drawn = names.get("drawn", []) if list(names)[-1] == "drawn" else []
    few = ", ".join(drawn) if len(drawn) <= 4 else ""
    return ", ".join(parts) + (f": {few}" if few else "")


def in_words(source: str) -> str:
    """What people read for a source, or for several with "+" between."""
    if "+" in source:
        return source.replace("drawn", "new").replace("+", " + ")
    words = {"drawn": "randomly initialized", "reset_parameters": "by the head's reset_parameters",
             "constructor": "as the head's constructor made them"}  # fmt: skip
    return words.get(source, source)


def keep(start: Start, chosen: Callable[[str], bool]) -> Origins:
    """The `chosen` tensors from the checkpoint, the others as random."""
    origins = random(start)
    load_weights(start.bert, start.checkpoint, chosen)
    return origins | {name: "pretrained" for name in origins if chosen(name)}


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to, from 1; None outside the layers."""
    match = re.match(r"layers\.(\d+)\.", name)
    return int(match[1]) + 1 if match else None


def draw(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """BERT's random start for every part of `module`."""
    for part in module.modules():
        init_weights(part, std, generator)


def draw_head(head: nn.Module, std: float, generator: torch.Generator) -> Origins:
    """BERT's random start for a head's linear maps, embeddings and LayerNorms; any other part that has a
    `reset_parameters` starts as that says, with all that is in it; the rest stays as its constructor made it.

    Returns:
        The source of each parameter.
    """
    if isinstance(head, (nn.Linear, nn.Embedding, nn.LayerNorm)):
        init_weights(head, std, generator)
        return dict.fromkeys(dict(head.named_parameters()), "drawn")
    if callable(getattr(head, "reset_parameters", None)):
        head.reset_parameters()
        return dict.fromkeys(dict(head.named_parameters()), "reset_parameters")
    origins = dict.fromkeys((name for name, _ in head.named_parameters(recurse=False)), "constructor")
    for part, module in head.named_children():
        origins |= {f"{part}.{name}": source for name, source in draw_head(module, std, generator).items()}
    return origins


def stream(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive(seed, purpose))
