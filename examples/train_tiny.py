"""Trains the embedded model, `models/tiny`: a latent diffusion model of Stable Diffusion's structure, on scenes it draws itself.

    python examples/train_tiny.py models/tiny --work build/train-tiny

Four stages, each resumable from `--work` after an interruption: a byte-pair tokenizer on the captions, the autoencoder on drawn
pictures, the text encoder on naming what a caption says (the part that CLIP's pretraining plays for Stable Diffusion), and the U-Net
on noise prediction (Ho et al. 2020, eq. 14) with 10 % empty captions for guidance (Ho & Salimans 2022), the text encoder frozen.
Everything is seeded. About two hours on two CPU cores, minutes on a GPU.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from runtime.scenes import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Scene, draw, is_held_out, judge, scenes, score_scenes

SIZE = 64  # pixels; 8x8 latents
TOKENS = 77
NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Stage:
    """How long and how fast one stage trains."""

    steps: int
    batch: int
    learning_rate: float


@dataclass
class Training:
    """What the stages share: device, work folder, seed and the batches' source."""

    work: Path
    device: torch.device
    seed: int

    def loop(self, name: str, stage: Stage, parts: dict[str, Any], step: Callable[[int], dict[str, float]], every: int = 250,
             after: Callable[[int], None] | None = None) -> None:
        """Runs `step` with a progress bar; saves `parts` (anything with a state_dict) now and then, and resumes from them."""
        path = self.work / f"{name}.pt"
        start = 0
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            start = saved.pop("step")
            for key, part in parts.items():
                part.load_state_dict(saved[key])
        with tqdm(total=stage.steps, initial=start, desc=name, unit="step", mininterval=5) as bar:
            for index in range(start, stage.steps):
                torch.manual_seed(self.seed * 1_000_003 + index)  # a resumed run draws what an uninterrupted one draws
                bar.set_postfix(step(index), refresh=False)
                bar.update()
                if (index + 1) % every == 0 or index + 1 == stage.steps:
                    state = {"step": index + 1, **{key: part.state_dict() for key, part in parts.items()}}
                    torch.save(state, path.with_suffix(".new"))
                    path.with_suffix(".new").replace(path)
                    if after is not None:
                        after(index + 1)


def warm_then_cosine(step: int, steps: int) -> float:
    """Learning-rate factor: 2 % of the steps up, constant until 60 %, then a cosine to a fiftieth."""
    rise = max(1, steps // 50)
    if step < rise:
        return (step + 1) / rise
    late = max(0.0, (step / steps - 0.6) / 0.4)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


class Ema:
    """Exponential moving average of parameters, with the warm-up of the decay that short runs need."""

    def __init__(self, modules: list[torch.nn.Module], decay: float) -> None:
        self.parameters = [p for module in modules for p in module.parameters()]
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        torch._foreach_lerp_(self.average, self.parameters, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the averaged and the trained values."""
        for average, parameter in zip(self.average, self.parameters, strict=True):
            kept = parameter.clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)


# --- tokenizer ---------------------------------------------------------------------------------------------------------------------


def train_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, `</w>` at word ends, lower case) whose merges come from the captions; written to `folder`."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=1000, min_frequency=2, show_progress=False, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    characters = list(bytes_to_unicode().values())
    words = characters + [c + "</w>" for c in characters] + ["".join(merge) for merge in merges]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable character for every byte (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


# --- the three networks ------------------------------------------------------------------------------------------------------------


def make_vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=SIZE, latent_channels=4, block_out_channels=(16, 32, 48, 48), layers_per_block=2, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=384, projection_dim=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=TOKENS, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 8, in_channels=4, out_channels=4, block_out_channels=(56, 64, 72, 72), layers_per_block=2,
        norm_num_groups=8, cross_attention_dim=96, attention_head_dim=2,
    )


# --- stages ------------------------------------------------------------------------------------------------------------------------


def pictures(chosen: list[Scene], seed: int, index: int, batch: int) -> tuple[list[Scene], torch.Tensor]:
    """A batch of drawn scenes: half with one shape, half with two; pictures in -1..1, [batch, 3, SIZE, SIZE]."""
    rng = np.random.default_rng([seed, index])
    single = [s for s in chosen if len(s.things) == 1]
    pairs = [s for s in chosen if len(s.things) == 2]
    picked = [pool[rng.integers(len(pool))] for pool in [single if rng.random() < 0.4 else pairs for _ in range(batch)]]
    drawn = np.stack([draw(scene, SIZE, rng) for scene in picked])
    return picked, torch.from_numpy(drawn).permute(0, 3, 1, 2) * 2 - 1


def train_vae(training: Training, vae: AutoencoderKL, chosen: list[Scene], stage: Stage) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=stage.learning_rate, weight_decay=0.0)
    ema = Ema([vae], 0.995)

    def step(index: int) -> dict[str, float]:
        x = pictures(chosen, training.seed, index, stage.batch)[1].to(training.device)
        with torch.autocast(training.device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        error = F.l1_loss(y.float(), x) + F.mse_loss(y.float(), x)
        kl = posterior.kl().mean() / x[0].numel()
        set_rate(optimizer, stage.learning_rate * warm_then_cosine(index, stage.steps))
        optimizer.zero_grad()
        (error + 1e-5 * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(index)
        return {"error": float(error), "kl": float(kl)}

    training.loop("autoencoder", stage, {"vae": vae, "optimizer": optimizer, "ema": ema}, step)
    ema.swap()


def attributes(scene: Scene) -> list[int]:
    """What a caption says, as class numbers: colours, shapes, size, position and background, 0 where it says nothing."""
    things = [*scene.things, None][:2]
    colours = [0 if thing is None else 1 + list(COLOURS).index(thing.colour) for thing in things]
    shapes = [0 if thing is None else 1 + SHAPES.index(thing.shape) for thing in things]
    words = scene.caption
    size = next((1 + i for i, name in enumerate(SIZES) if f"a {name} " in words), 0)
    position = next(i for i, name in enumerate([*PLACES, *RELATIONS]) if f" {name} " in words)
    return [*colours, *shapes, size, position, 1 + list(COLOURS).index(scene.background)]


CLASSES = (7, 7, 5, 5, 3, len(PLACES) + len(RELATIONS), 7)


def train_text_encoder(training: Training, encoder: CLIPTextModel, chosen: list[Scene], ids: torch.Tensor, stage: Stage) -> None:
    head = torch.nn.Linear(encoder.config.hidden_size, sum(CLASSES)).to(training.device)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.01)
    targets = torch.tensor([attributes(scene) for scene in chosen], device=training.device)

    def step(index: int) -> dict[str, float]:
        rows = torch.randint(len(chosen), (stage.batch,))
        # every position after the caption must know the scene: the U-Net's cross-attention reads them all
        hidden = encoder(ids[rows].to(training.device)).last_hidden_state
        logits = head(hidden[:, [20, 30, 45, 76]]).split(CLASSES, dim=-1)
        goal = targets[rows.to(training.device)]
        loss = sum(F.cross_entropy(x.flatten(0, 1), goal[:, i].repeat_interleave(4)) for i, x in enumerate(logits)) / len(CLASSES)
        set_rate(optimizer, stage.learning_rate * warm_then_cosine(index, stage.steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return {"loss": float(loss)}

    training.loop("text encoder", stage, {"encoder": encoder, "head": head, "optimizer": optimizer}, step)


@torch.no_grad()
def encode_pictures(training: Training, vae: AutoencoderKL, chosen: list[Scene], count: int) -> tuple[list[Scene], torch.Tensor]:
    """The posterior's parameters of `count` pictures, [count, 8, SIZE/8, SIZE/8], drawn once for the U-Net's training."""
    path = training.work / "latents.pt"
    batches: list[torch.Tensor] = []
    picked: list[Scene] = []
    done = torch.load(path, weights_only=True) if path.exists() else None
    for index in tqdm(range(count // 100), desc="latents", unit="batch", mininterval=5):
        batch, x = pictures(chosen, training.seed + 1, index, 100)
        picked += batch
        if done is None:
            batches.append(vae.encode(x.to(training.device)).latent_dist.parameters.cpu())
    if done is None:
        done = torch.cat(batches)
        torch.save(done, path)
    return picked, done


def train_unet(training: Training, unet: UNet2DConditionModel, meanings: torch.Tensor, captions: torch.Tensor, moments: torch.Tensor,
               scaling: float, stage: Stage, after: Callable[[int], None]) -> None:
    """`meanings` [captions, 77, 96] are the text encoder's outputs, the empty caption's last; picture i has the caption captions[i]."""
    unet.set_attn_processor(AttnProcessor())  # plain matrix products: at 8x8 latents a third faster in training than the fused kernel
    optimizer = torch.optim.AdamW(unet.parameters(), lr=stage.learning_rate, weight_decay=0.01)
    ema = Ema([unet], 0.999)
    alphas = DDIMScheduler(**NOISE).alphas_cumprod.to(training.device)

    def step(index: int) -> dict[str, float]:
        rows = torch.randint(len(moments), (stage.batch,))
        mean, log_variance = moments[rows].to(training.device).chunk(2, dim=1)
        latents = (mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * torch.randn_like(mean)) * scaling
        said = torch.where(torch.rand(stage.batch) < 0.1, len(meanings) - 1, captions[rows])
        # stratified timesteps: one in each slice of the thousand, which lowers the variance of the loss
        times = ((torch.arange(stage.batch) + torch.rand(stage.batch)) / stage.batch * 1000).long().to(training.device)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        with torch.autocast(training.device.type, torch.bfloat16):
            predicted = unet(noisy, times, meanings[said].to(training.device)).sample
        loss = F.mse_loss(predicted.float(), noise)
        set_rate(optimizer, stage.learning_rate * warm_then_cosine(index, stage.steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.update(index)
        return {"loss": float(loss)}

    def averaged(done: int) -> None:
        if done % 1000 == 0 or done == stage.steps:
            ema.swap()
            after(done)
            ema.swap()

    training.loop("U-Net", stage, {"unet": unet, "optimizer": optimizer, "ema": ema}, step, after=averaged)
    ema.swap()


def score(pipeline: StableDiffusionPipeline, wanted: list[Scene], sheet: Path | None = None) -> float:
    """Share of the scenes whose picture is right: 20 DDIM steps, guidance 4, seed = the scene's number."""
    right = 0
    drawn = []
    for start in range(0, len(wanted), 16):
        some = wanted[start : start + 16]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        out = pipeline([s.caption for s in some], num_inference_steps=20, guidance_scale=4.0, generator=generators, height=SIZE, width=SIZE,
                       output_type="np").images
        drawn += list((out * 255).round().astype(np.uint8))
    for scene, picture in zip(wanted, drawn, strict=True):
        verdict = judge(picture, scene)
        right += verdict.right
        if not verdict.right:
            tqdm.write(f"  {scene.caption}: {verdict.reason}")
    if sheet is not None:
        from PIL import Image

        rows = [np.concatenate(drawn[i : i + 8], axis=1) for i in range(0, len(drawn), 8)]
        Image.fromarray(np.concatenate(rows)).resize((8 * SIZE * 2, len(rows) * SIZE * 2), Image.Resampling.NEAREST).save(sheet)
    return right / len(wanted)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/train-tiny"), help="Where to resume from.")
@click.option("--seed", default=0)
@click.option("--vae-steps", default=1700)
@click.option("--text-steps", default=750)
@click.option("--unet-steps", default=5_000)
@click.option("--pictures", "picture_count", default=30_000, help="Pictures that the U-Net sees, each many times with other noise.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(out: Path, work: Path, seed: int, vae_steps: int, text_steps: int, unet_steps: int, picture_count: int, device: str) -> None:
    """Trains the embedded model and writes it to OUT in diffusers layout, half precision, safetensors."""
    started = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    training = Training(work, torch.device(device), seed)
    torch.manual_seed(seed)
    chosen = [scene for scene in scenes() if not is_held_out(scene)]
    tokenizer = train_tokenizer(work / "tokenizer", [scene.caption for scene in chosen])

    def encode(captions: list[str]) -> torch.Tensor:
        return tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids

    vae, encoder, unet = make_vae(), make_text_encoder(tokenizer), make_unet()
    for module in (vae, encoder, unet):
        module.to(training.device)
        print(f"{type(module).__name__}: {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters")
    train_vae(training, vae, chosen, Stage(vae_steps, 24, 1.5e-3))
    vae.requires_grad_(False).eval()
    train_text_encoder(training, encoder, chosen, encode([s.caption for s in chosen]), Stage(text_steps, 64, 1e-3))
    picked, moments = encode_pictures(training, vae, chosen, picture_count)
    mean, log_variance = moments.chunk(2, dim=1)
    scaling = float(1 / torch.sqrt(mean.var() + log_variance.exp().mean()))
    vae.register_to_config(scaling_factor=round(scaling, 5))

    validation = score_scenes(64, skip=100)  # held out too, and no prompt of the score

    def pipeline() -> StableDiffusionPipeline:
        ddim = DDIMScheduler(**NOISE, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
        made = StableDiffusionPipeline(vae, encoder, tokenizer, unet, ddim, None, None, requires_safety_checker=False)
        made.set_progress_bar_config(disable=True)
        return made

    def after(done: int) -> None:
        unet.eval()
        tqdm.write(f"step {done}: {score(pipeline(), validation, work / f'validation-{done}.png'):.3f} of the validation prompts are right")
        unet.train()

    encoder.requires_grad_(False).eval()
    numbers = {scene.caption: number for number, scene in enumerate(chosen)}
    ids = encode([*numbers, ""])
    meanings = torch.cat([encoder(some.to(training.device)).last_hidden_state.cpu() for some in ids.split(500)])
    captions = torch.tensor([numbers[scene.caption] for scene in picked])
    train_unet(training, unet, meanings, captions, moments, vae.config.scaling_factor, Stage(unet_steps, 64, 1e-3), after)
    for module in (vae, encoder, unet):
        module.eval().to("cpu", torch.float16).to(torch.float32)  # the score is that of the weights as they are shipped
    finished = pipeline()
    final = score(finished, score_scenes(), work / "score.png")
    for module in (vae, encoder, unet):
        module.to(torch.float16)
    finished.save_pretrained(out, safe_serialization=True)
    # transformers 5 drops the prefix that every published checkpoint has and that transformers 4 needs; it reads both
    encoder_file = out / "text_encoder" / "model.safetensors"
    renamed = {f"text_model.{name}": tensor for name, tensor in load_file(encoder_file).items()}
    save_file(renamed, encoder_file, metadata={"format": "pt"})
    for name in ("vocab.json", "merges.txt"):  # transformers 5 writes tokenizer.json alone; every other reader wants these two
        shutil.copy(work / "tokenizer" / name, out / "tokenizer" / name)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{final:.3f} of the 64 score prompts are right; {size:.1f} MB in {out}; {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
