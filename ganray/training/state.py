"""TrainState: networks, optimizers and step; everything else follows from (rng_seed, step)."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn
from torch.optim import Optimizer

from ganray.config.schema import Config, OptimizerConfig
from ganray.config.serialization import check_resumes, from_dict, to_dict
from ganray.data.format import Shape
from ganray.data.transforms import to_uint8
from ganray.distributed import Sums, world_size, wrap_ddp
from ganray.errors import UserError
from ganray.files import read_json
from ganray.gan import ema, latents, networks
from ganray.gan.augmentation import Augmentation
from ganray.gan.step import OVERFITTING, DiscriminatorObjective, GeneratorObjective
from ganray.training.schedules import scheduled_values

STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
DIGEST_FILE = "digests.json"
"""File of a checkpoint with the digest of its tensor file."""
GRID_ROWS, GRID_COLUMNS = 8, 8
"""Sample grid size. Conditional models with at most 16 classes use one column per class."""
_SAMPLE_BATCH = 256
"""Images that G_ema generates at once; full-size images would need gigabytes otherwise."""


class TrainState:
    """The two networks, the averaged generator, the optimizers and the step."""

    def __init__(
        self, config: Config, image_shape: Shape, device: torch.device, classes: int = 0
    ) -> None:
        self.config, self.image_shape, self.device = config, image_shape, device
        self.classes = classes
        self.step = 0
        self.rollbacks = 0
        """Times that training went back to a checkpoint because it diverged."""
        self.G, self.D = build_networks(config, image_shape, device, classes)
        # Without averaging a copy would only cost memory and time.
        has_ema = config.train.ema_kimg > 0 or bool(config.schedule.ema_kimg)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False) if has_ema else self.G
        # Generators have no buffers but constants (tested), so only parameters are averaged.
        self._averaged, self._latest = (
            [p.detach() for p in network.parameters()] for network in (self.G_ema, self.G)
        )
        augmentation = None
        if config.augment.policy != "none":
            augmentation = Augmentation(config.augment, config.pixel_min())
        # D is frozen while the G objective is wrapped, so that its DDP reduces G's gradients only.
        D_objective, G_objective = (
            DiscriminatorObjective(self.D, config.loss, augmentation),
            GeneratorObjective(self.G, self.D, config.loss, augmentation),
        )
        self._unwrapped_D_objective = D_objective
        self.D_objective = wrap_ddp(D_objective, device, config.train.reduce_precision)
        self.D.requires_grad_(False)
        self.G_objective = wrap_ddp(G_objective, device, config.train.reduce_precision)
        self.D.requires_grad_(True)
        self.D_optimizer = build_optimizer(config.optimizer, self.D, config.optimizer.lr_D)
        self.G_optimizer = build_optimizer(config.optimizer, self.G, config.optimizer.lr_G)
        self.augment_p = torch.full((), config.augment.p, device=device)
        """Probability of augmentations, float32 () on the device, where an adaptive one stays."""
        self.values = scheduled_values(config, 0)
        """Values of the scheduled options that the optimizers and objectives have."""

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of the networks and their images."""
        return networks.memory_format(self.config.network, self.device)

    @property
    def rng_seed(self) -> int:
        """Seed of the batches and latents: `train.rng_seed`, or after a rollback another one."""
        seed = self.config.train.rng_seed
        return latents.derive_seed(seed, "rollback", self.rollbacks) if self.rollbacks else seed

    @property
    def images_seen(self) -> int:
        """Real images shown to D so far, summed over ranks."""
        return self.step * self.config.train.batch_size

    def is_due(self, kimg: float) -> bool:
        """Return whether an action is due that happens every `kimg` and after the last step."""
        train = self.config.train
        return self.step % train.kimg_to_steps(kimg) == 0 or self.step == train.steps()

    def is_checkpoint_due(self) -> bool:
        """Return whether a checkpoint is due to resume from, or to be kept forever."""
        train = self.config.train
        return self.is_due(train.checkpoint_every) or bool(
            train.keep_every and self.is_due(train.keep_every)
        )

    def apply_schedules(self) -> None:
        """Set the optimizers and objectives to the scheduled values of this step."""
        values = scheduled_values(self.config, self.images_seen)
        if values == self.values:
            return
        self.values, loss, beta1 = values, self.config.loss, self.config.optimizer.beta1
        rates = ((self.D_optimizer, values.lr_D), (self.G_optimizer, values.lr_G))
        for optimizer, lr in rates:
            for group in optimizer.param_groups:
                group["lr"] = lr
                if "betas" in group:
                    group["betas"] = (beta1, values.beta2)
        gammas = {"r1_gamma": values.r1_gamma, "r2_gamma": values.r2_gamma}
        self._unwrapped_D_objective.loss = replace(loss, **gammas)
        if not self.config.augment.target:
            self.augment_p.fill_(values.augment_p)

    def adapt_augmentation(self, sums: Sums) -> None:
        """Move an adaptive probability of augmentations after a step with these statistics.

        Karras et al. 2020 do so every fourth step. Collective.
        """
        augment = self.config.augment
        if not augment.target:
            return
        index = sums.names.index(OVERFITTING)
        total = sums.totals[index] - augment.target * sums.counts[index]
        if world_size() > 1:
            torch.distributed.all_reduce(total)
        change = self.config.train.batch_size / (augment.adapt_kimg * 1000)
        self.augment_p.add_(total.sign().float(), alpha=change).clamp_(0, 1)

    def advance(self) -> None:
        """Increment the step and update G_ema."""
        self.step += 1
        if self.G_ema is self.G:
            return
        ema.update(
            self._averaged,
            self._latest,
            batch_size=self.config.train.batch_size,
            half_life=self.values.ema_kimg * 1000,
            images_seen=self.images_seen if self.config.schedule.ema_kimg is None else None,
        )

    @property
    def columns(self) -> int:
        """Number of columns of the sample grid."""
        return self.classes if 0 < self.classes <= 2 * GRID_COLUMNS else GRID_COLUMNS

    def generate_grid(self) -> torch.Tensor:
        """Generate the images of the sample grid: uint8 (GRID_ROWS * columns, H, W, C), CPU."""
        return self.generate("samples", GRID_ROWS * self.columns).cpu()

    def generate(self, stream: str, count: int, rows: slice = slice(None)) -> torch.Tensor:
        """Generate images with G_ema from latents that are the same at every step.

        Args:
            stream: Name of the random stream of the latents.
            count: Number of latents. Conditional models cycle through the classes.
            rows: Slice of the latents to generate images from.

        Returns:
            uint8 (n, H, W, C) on the device, n being the length of the slice.
        """
        z = latents.fixed_latents(
            self.config.latent, self.config.train.rng_seed, stream, count, self.classes, self.device
        )[rows]
        pixel_min = self.config.pixel_min()
        with torch.no_grad():
            images = [to_uint8(self.G_ema(part), pixel_min) for part in z.split(_SAMPLE_BATCH)]
        return torch.cat(images)

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint contains.

        Tensors that only an optimizer step changes are the live ones; buffers, which a forward pass
        changes, are copies.
        """
        return {
            "step": self.step,
            "rollbacks": self.rollbacks,
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "augment_p": self.augment_p.clone(),
        } | {name: _live_state(module) for name, module in self._modules().items()}

    def load(self, folder: Path) -> None:
        """Load a checkpoint folder; raise UserError if it is from a different training setup."""
        check_resumes(read_config(folder), self.config)
        state = read_state(folder)
        shape, classes = tuple(state["image_shape"]), state["classes"]
        if (shape, classes) != (self.image_shape, self.classes):
            raise UserError(
                f"checkpoint {folder} is for images of shape {shape} in {classes} classes, not of"
                f" {self.image_shape} in {self.classes}; use the same images (--data.root) or"
                " another --name"
            )
        for name, module in self._modules().items():
            # Optimizer states include options. Those of the config apply: learning rates differ if
            # population-based training continues from the weights of another run, `capturable` if
            # the checkpoint was written on a CPU.
            groups = state[name].get("param_groups", ())
            for group, values in zip(groups, _optimizer_options(module), strict=True):
                group.update(values)
            module.load_state_dict(state[name])
            if isinstance(module, Optimizer):
                _match_layouts(module)
        self.step, self.rollbacks = state["step"], state["rollbacks"]
        if self.config.augment.target:
            self.augment_p.copy_(state["augment_p"])

    def load_weights(self, folder: Path) -> None:
        """Load the networks of a checkpoint folder, but not its optimizers and its step.

        Raises:
            UserError: Its networks are not of this size.
        """
        state = read_state(folder)
        networks = {"G": self.G, "D": self.D}
        check_weights_fit(folder, state, networks)
        for name, network in networks.items():
            network.load_state_dict(state[name])
        if self.G_ema is not self.G:
            self.G_ema.load_state_dict(state["G_ema"])

    def _modules(self) -> dict[str, nn.Module | Optimizer]:
        return {
            "G": self.G,
            "D": self.D,
            "G_ema": self.G_ema,
            "G_optimizer": self.G_optimizer,
            "D_optimizer": self.D_optimizer,
        }


def check_weights_fit(
    folder: Path, state: Mapping[str, Any], networks: Mapping[str, nn.Module]
) -> None:
    """Compare the names and shapes of a checkpoint's weights with those of networks.

    Raises:
        UserError: They differ; the first difference is named.
    """
    if "D" not in state:
        raise UserError(f"init_from={folder} holds a generator only; name a run's checkpoint")
    for name, network in networks.items():
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        found = {key: tuple(value.shape) for key, value in state[name].items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                raise UserError(
                    f"init_from={folder}: the weight {name}.{key} is"
                    f" {found.get(key, 'missing')} there and {expected.get(key, 'missing')} here;"
                    " use its options of network, latent.size and data.size, and its classes"
                )


def _live_state(module: nn.Module | Optimizer) -> dict[str, Any]:
    values = dict(module.state_dict())
    if isinstance(module, nn.Module):
        values |= {k: buffer.clone() for k, buffer in module.named_buffers() if k in values}
    return values


def _optimizer_options(module: nn.Module | Optimizer) -> list[dict[str, Any]]:
    """Return the options of an optimizer's parameter groups; [] for a network."""
    groups = module.param_groups if isinstance(module, Optimizer) else []
    return [{name: value for name, value in g.items() if name != "params"} for g in groups]


@torch.no_grad()
def _match_layouts(optimizer: Optimizer) -> None:
    """Give moments the memory layout of their weights, which fused optimizers rely on.

    They keep that of the checkpoint otherwise, which differs if it was written on another device.
    """
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                moments[name] = torch.empty_like(weight).copy_(value)


def build_networks(
    config: Config, image_shape: Shape, device: torch.device, classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Build (G, D) with initial weights that depend on train.rng_seed only, equal on all ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(latents.derive_seed(config.train.rng_seed, "weights", 0))
        G, D = networks.build(config.network, config.latent, image_shape, classes)
    layout = networks.memory_format(config.network, device)
    return G.to(device, memory_format=layout), D.to(device, memory_format=layout)  # pyright: ignore


def build_optimizer(config: OptimizerConfig, network: nn.Module, lr: float) -> Optimizer:
    """Build the configured optimizer of one network, fused if torch has a fused version."""
    parameters = list(network.parameters())
    betas = (config.beta1, config.beta2)
    graphs = parameters[0].is_cuda  # the count of steps is on the device, too
    match config.name:
        case "adam":
            return torch.optim.Adam(parameters, lr, betas, fused=True, capturable=graphs)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, betas, fused=True, capturable=graphs)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr, capturable=graphs)
        case "sgd":
            return torch.optim.SGD(parameters, lr, momentum=config.beta1, fused=True)
        case "lion":
            from lion_pytorch import Lion

            return Lion(parameters, lr, betas)


def save_content(content: Mapping[str, Any], config: Config, folder: Path) -> None:
    """Write the content of a state, and its config. They can be loaded with any world size."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(content), folder / STATE_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(to_dict(config), indent=2))


def read_config(folder: Path) -> Config:
    """Read the config of a run or checkpoint folder; raise UserError if the file is damaged."""
    path, remedy = folder / CONFIG_FILE, "delete its folder, or restore the file"
    try:
        return from_dict(read_json(path, remedy))
    except (TypeError, KeyError, AttributeError) as error:  # values of other types
        raise UserError(f"{path}: damaged ({error!r}); {remedy}") from error


def file_digest(path: Path) -> str:
    """Return the XXH3 digest of a file, 32 hex digits, at the speed of memory."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while data := file.read(2**24):
            digest.update(data)
    return digest.hexdigest()


def verify_checkpoint(folder: Path) -> None:
    """Read the config of a checkpoint and compare the tensor file with its digest.

    Raises:
        UserError: A file is missing or damaged; one flipped bit of a weight suffices.
    """
    read_config(folder)
    remedy = "delete its folder to resume from an earlier checkpoint"
    for name, digest in read_json(folder / DIGEST_FILE, remedy).items():
        path = folder / Path(name).name
        try:
            is_intact = file_digest(path) == digest
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
        if not is_intact:
            raise UserError(f"{path}: damaged (its digest differs from {DIGEST_FILE}); {remedy}")


def read_state(folder: Path) -> dict[str, Any]:
    """Read the tensors of a checkpoint to the CPU, without unpickling code.

    Raises UserError if a file is missing or damaged.
    """
    path = folder / STATE_FILE
    if (folder / DIGEST_FILE).exists():  # the generator in an MLflow model has none
        verify_checkpoint(folder)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parser of a damaged file comes upon
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged or contains"
            " more than tensors; delete its folder to continue from the previous one"
        ) from error


def export_generator(checkpoint: Path, folder: Path) -> Path:
    """Write a checkpoint of the generator only into a folder, and return the folder."""
    state = read_state(checkpoint)
    kept = {name: state[name] for name in ("step", "image_shape", "classes", "G_ema")}
    torch.save(kept, folder / STATE_FILE)
    shutil.copyfile(checkpoint / CONFIG_FILE, folder / CONFIG_FILE)
    return folder


def generator_from_checkpoint(folder: Path) -> nn.Module:
    """Return a checkpoint's G_ema in eval mode on the CPU: float (n, size + classes) -> images."""
    state = read_state(folder)
    G, _ = build_networks(
        read_config(folder), tuple(state["image_shape"]), torch.device("cpu"), state["classes"]
    )
    G.load_state_dict(state["G_ema"])
    return G.requires_grad_(False).eval()
