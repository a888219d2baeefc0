"""Train the transformer by flow matching on latents of the frozen autoencoder, with a text encoder that can read.

    x_sigma = (1 - sigma) x0 + sigma noise;  loss = || model(x_sigma, 1000 sigma, text) - (noise - x0) ||^2

A quarter of the clips keep some latent frames known (clean, at timestep 0, not counted in the loss): the first ones,
the last ones, both, or a span in the middle, so that the same weights continue, precede, join and loop clips. A tenth
has its caption dropped, for guidance.

Not every step takes whole clips: a few latent frames at their true places in time teach what things look like, and how
they move, for a fraction of the cost (see :func:`diet_at`).

Two steps in five are lessons of things that stand, some of which turn. Before there were such, a caption of spinning
cost as much as one of standing still at every noise level, and 2 of 14 spinning things spun; drawing their scenes twice
as often, at the usual levels, for 97 minutes on two busy cores did not help. Sixteen minutes of lessons made the right
word 3 to 4 % cheaper than the wrong one at levels from 0.7 to 0.85.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from glimt.models.wan.config import WanTransformerConfig
from glimt.models.wan.context import FoldedText
from glimt.models.wan.rope import RopeTables, rope_tables
from glimt.models.wan.transformer import CrossAttention, WanTransformer
from glimt.models.wan.vae import WanVae
from glimt_world.captions import caption, held_out
from glimt_world.scene import Scene
from glimt_world.train.export import SHIFT, write_checkpoint
from glimt_world.train.forms import form_of
from glimt_world.train.latents import LatentStore
from glimt_world.train.muon import Muon, split_parameters
from glimt_world.train.run import Average, drive, learning_rate, set_rate
from glimt_world.train.text import MAX_TOKENS, embed, new_encoder, write_tokenizer
from glimt_world.train.words import learn_to_read

# What the cells where things are count in the loss. They are a tenth of a clip, and nearly all that captions speak of;
# the best prediction of each cell is the same whatever it counts.
THINGS = 6.0
ROWS = 32  # tokens of a caption in training; the one in thirty that is longer is said again in fewer words


@dataclass(frozen=True)
class Diet:
    """One kind of step: ``frames`` latent frames (0: all) of ``clips`` times the batch's clips.

    ``standing``: of scenes in which things stand, at the noise levels where it shows whether they turn.
    """

    frames: int
    clips: int
    standing: bool = False

    @property
    def name(self) -> str:
        return f"{self.frames or 'whole'}{'_standing' if self.standing else ''}"


# Of like cost: single frames, three of a clip, whole clips.
SINGLES, TRIPLES, WHOLE = Diet(1, 6), Diet(3, 2), Diet(0, 1)
STANDING = (Diet(3, 2, standing=True), Diet(0, 1, standing=True))


def diet_at(progress: float, chance: float) -> Diet:
    """Which kind of step to take at ``progress`` in [0, 1] of the run, with ``chance`` uniform in [0, 1)."""
    if progress >= 0.15:
        if chance < 0.4:
            return STANDING[0] if chance < 0.2 else STANDING[1]
        chance = (chance - 0.4) / 0.6
    singles, triples = (0.9, 0.1) if progress < 0.15 else (0.1, 0.5) if progress < 0.8 else (0.05, 0.15)
    return SINGLES if chance < singles else TRIPLES if chance < singles + triples else WHOLE


def chosen_frames(count: int, frames: int, rng: np.random.Generator) -> list[int]:
    """``frames`` of ``count`` latent frames in order, the first more often than chance: it stands for a picture."""
    if frames in (0, count):
        return list(range(count))
    first = [0] if rng.random() < 0.4 else []
    rest = rng.choice(np.arange(len(first), count), size=frames - len(first), replace=False)
    return first + sorted(int(i) for i in rest)


def known_frames(count: int, frames: int, rng: np.random.Generator) -> Tensor:
    """Bool [count, frames]: which latent frames of each clip are given rather than generated."""
    known = np.zeros((count, frames), bool)
    for row in known:
        kind, edge = rng.random(), min(int(rng.choice([1, 1, 2, 3])), max(1, (frames - 1) // 2))
        if kind < 0.10:
            row[:edge] = True
        elif kind < 0.15:
            row[-edge:] = True
        elif kind < 0.21:
            row[:edge] = row[-edge:] = True
        elif kind < 0.25:
            start = int(rng.integers(1, frames - edge))
            row[start : start + edge] = True
    return torch.from_numpy(known)


def draw_sigmas(count: int, *, standing: bool = False) -> Tensor:
    """Noise levels ``s u / (1 + (s - 1) u)``, u uniform: half with the sampler's own shift s, half nearly all noise.

    Where things go is settled above 0.9: there a wrong word for a motion costs the loss most. Logit-normal levels,
    which we had, come there too seldom (3 % above 0.95): left was drawn as right. Whether a thing that stands turns
    shows below that, and drowns again under 0.5: ``standing`` draws evenly from there.
    """
    if standing:
        return 0.5 + 0.47 * torch.rand(count)
    u, shift = torch.rand(count), torch.where(torch.rand(count) < 0.5, SHIFT, 10.0)
    return shift * u / (1 + (shift - 1) * u)


def fold(text: Tensor, mask: Tensor) -> FoldedText:
    """As if ``text`` were padded with zeros to 512 tokens, which is what Wan pipelines feed, at a fixed short length.

    (:func:`glimt.models.wan.context.fold_padding` keeps as few rows as it can; compiled code wants one shape.)
    """
    length, rows = mask.sum(1, keepdim=True), text.shape[1]
    weight = torch.log((MAX_TOKENS - length) / (rows - length).clamp(min=1))
    return FoldedText(text, torch.where(mask.bool(), 0.0, weight))


@torch.no_grad()
def listen(transformer: WanTransformer, text_dim: int) -> None:
    """Turn every cross-attention away from padding, to which Wan pipelines fill a prompt: 490 zero rows of 512.

    Each padded row has the same key; queries begin with its opposite. Without that, words start with 5 % of the
    attention, and nearly all of a run goes by before they are heard.
    """
    padding = transformer.condition_embedder.text_embedder(torch.zeros(1, text_dim))
    for module in transformer.modules():
        if isinstance(module, CrossAttention):
            module.to_q.bias.copy_(-module.norm_k(module.to_k(padding))[0])


def flow_loss(off: Tensor, known: Tensor, things: Tensor, *, change: float, first: bool) -> Tensor:
    """Mean over the cells to be made of ``|e|^2 + change |e - mean_f e|^2``, cells where things are ``THINGS`` times.

    Whatever positive form of the error is taken, the conditional mean is what makes it least. The second part is for
    what differs between a clip's frames: of a ball that spins a twelfth of the latents' energy, the rest being the same
    in every frame. (It came together with the lessons; what each did alone was not measured.)

    Args:
        off: error of the velocity, ``[B, C, f, h, w]``; ``known``: bool ``[B, f]``; ``things``: bool ``[B, f, h, w]``.
        change: weight of the second part. ``first``: the first frame is a clip's first.
    """
    made = ~known[:, None, :, None, None]
    error = off.square().mean(dim=1)
    if off.shape[2] > 1:
        middle = (off * made).sum(dim=2, keepdim=True) / made.sum(dim=2, keepdim=True)
        error = error + change * ((off - middle) * made).square().mean(dim=1)
    weight = torch.where(things, THINGS, 1.0) * made[:, 0]
    if first:
        weight[:, 0] *= 1.5  # one picture rests on the first latent frame alone, and it leads the rest
    return (error * weight).sum() / weight.sum()


class Trainee(nn.Module):
    """The transformer in training, and the text encoder that it listens to."""

    def __init__(self, config: WanTransformerConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.transformer = WanTransformer(config)
        self.text_encoder = encoder.requires_grad_(False)
        listen(self.transformer, config.text_dim)
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor, mask: Tensor, rope: RopeTables) -> Tensor:
        with torch.no_grad():
            text = embed(self.text_encoder, ids, mask)
        return self.transformer(latents, timesteps, fold(text, mask), rope=rope)


class DitTrainer:
    """One flow-matching step after another, on pictures or clips."""

    def __init__(
        self,
        folder: Path,
        store: LatentStore,
        encoder: nn.Module,
        *,
        batch: int,
        fresh: int,
        peak: float,
        compiled: bool,
    ) -> None:
        self.folder, self.store = folder, store
        self.device = device = next(store.vae.parameters()).device.type
        self.batch, self.fresh, self.peak = batch, fresh, peak
        self.learned = 0.0  # how far along its diets the weights are that training begins from
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
        torch.manual_seed(1)
        self.model = Trainee(store.form.transformer, encoder).to(device)
        if compiled:
            self.model.transformer.compile(dynamic=False)
        self.average = Average(self.model, 0.9995)
        hidden = split_parameters(self.model.transformer.blocks)[0]
        chosen = {id(p) for p in hidden}
        self.muon = Muon(hidden, lr=peak)
        others = [p for p in self.model.transformer.parameters() if id(p) not in chosen]
        self.adam = torch.optim.AdamW(others, lr=0.1 * peak, betas=(0.9, 0.98), weight_decay=0.0)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self.average, "muon": self.muon, "adam": self.adam}

    def tokens(self, scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        texts = ["" if rng.random() < 0.1 else self._words(scene, rng) for scene in scenes]
        out = self.tokenizer(texts, padding="max_length", max_length=ROWS, truncation=True, return_tensors="pt")
        return out.input_ids.to(self.device), out.attention_mask.to(self.device)

    def _words(self, scene: Scene, rng: np.random.Generator) -> str:
        for _ in range(20):
            text = caption(scene, rng).text
            if len(self.tokenizer(text).input_ids) <= ROWS:
                break
        return text

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a written checkpoint."""
        self.model.transformer.load_state_dict(
            load_file(checkpoint / "transformer/diffusion_pytorch_model.safetensors")
        )
        weights = load_file(checkpoint / "text_encoder/model.safetensors")
        # One table under two names; safetensors keeps one of them.
        weights.setdefault("encoder.embed_tokens.weight", weights["shared.weight"])
        self.model.text_encoder.load_state_dict(weights)
        self.learned = 0.5
        self.average = Average(self.model, self.average.decay)

    def step(self, step: int, progress: float) -> dict[str, float]:
        rng = np.random.default_rng(step)
        diet = diet_at(self.learned + (1 - self.learned) * progress, rng.random())
        self.store.add(self.fresh)
        loss = self._loss(rng, diet)
        self._update(loss, progress)
        return {f"loss_{diet.name}": loss.item()}

    def sheet(self, path: Path) -> None:
        """Clips of held-out captions, by the checkpoint as it would be written now."""
        import glimt
        from glimt.video.sheet import contact_sheet

        target = self.folder / "checkpoint"
        write_checkpoint(target, self.store.vae, self.store.form, self.average.weights, self.folder)
        captions = [made.text for made in held_out(6)]
        with glimt.Engine.load(target, device=self.device) as engine:
            clips = [engine.generate(glimt.GenerateRequest(prompt=text)).frames for text in captions]
        contact_sheet(clips, labels=captions).save(path)

    def _loss(self, rng: np.random.Generator, diet: Diet) -> Tensor:
        clips, scenes, things = self.store.draw(self.batch * diet.clips, rng, standing=diet.standing)
        places = chosen_frames(clips.shape[2], diet.frames, rng)
        x0 = clips[:, :, places].to(self.device)
        count, frames = x0.shape[0], x0.shape[2]
        known = known_frames(count, frames, rng) if diet is WHOLE else torch.zeros(count, frames, dtype=torch.bool)
        levels = draw_sigmas(count, standing=diet.standing)
        sigmas = torch.where(known, 0.0, levels[:, None]).to(self.device)
        noise = torch.randn_like(x0)
        level = sigmas[:, None, :, None, None]
        ids, mask = self.tokens(scenes, rng)
        # The CPU's fused attention takes longer backwards than everything else together; plain products do not.
        fused = [] if self.device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        with torch.autocast(self.device, torch.bfloat16), sdpa_kernel([*fused, SDPBackend.MATH]):
            velocity = self.model((1 - level) * x0 + level * noise, 1000 * sigmas, ids, mask, self._rope(clips, places))
        return flow_loss(
            velocity.float() - (noise - x0),
            known.to(self.device),
            things[:, places].to(self.device),
            change=4.0 if diet.standing else 2.0,
            first=places[0] == 0,
        )

    def _rope(self, clips: Tensor, places: list[int]) -> RopeTables:
        """The rows of whole clips' tables that belong to the latent frames ``places``."""
        grid = self.model.transformer.grid(clips)
        tables = rope_tables(self.store.form.transformer.attention_head_dim, grid)
        cos, sin = (table.view(grid[0], -1, table.shape[1])[places].flatten(0, 1) for table in (tables.cos, tables.sin))
        return RopeTables(cos, sin).to(torch.device(self.device))

    def _update(self, loss: Tensor, progress: float) -> None:
        rate = learning_rate(progress, self.peak)
        set_rate(self.muon, rate)
        set_rate(self.adam, 0.1 * rate)
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.step()
        self.adam.step()
        self.average.update(self.model)


def train(
    folder: Path,
    form: str,
    vae: WanVae,
    *,
    minutes: float,
    start: Path | None = None,
    batch: int = 16,
    fresh: int = 2,
    fill: int = 1024,
    peak: float = 0.02,
    compiled: bool = True,
) -> None:
    """Train in ``folder`` on latents of ``vae``; a new run begins from fresh weights, or from the checkpoint ``start``.

    Args:
        fresh: new clips that join the store with each step; ``fill``: those it begins with.
        compiled: through torch.compile, which takes a minute or two and then a third less time for each step.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not (folder / "tokenizer").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if start is None:
            write_tokenizer(folder / "tokenizer")
        else:
            shutil.copytree(start / "tokenizer", folder / "tokenizer")
    store = LatentStore(vae.to(device), form_of(folder, form), capacity=24_000, seed=int(time.time()))
    while len(store) < fill:
        store.add(min(8, fill))
    encoder = learn_to_read(folder) if start is None else new_encoder()
    trainer = DitTrainer(folder, store, encoder, batch=batch, fresh=fresh, peak=peak, compiled=compiled)
    if start is not None:
        trainer.load(start)
    drive(trainer, folder, minutes=minutes)
