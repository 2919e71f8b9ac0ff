"""TrainState: all that a run must remember. Everything else is a function of (rng_seed, step)."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ganray.config.schema import Config, OptimizerConfig
from ganray.config.serialization import check_resumes, from_dict, to_dict
from ganray.data.transforms import to_uint8
from ganray.distributed import wrap_ddp
from ganray.errors import UserError
from ganray.gan import ema, latents, networks
from ganray.gan.step import DiscriminatorObjective, GeneratorObjective

Shape = tuple[int, int, int]

STATE_FILE = "state.pt"
CONFIG_FILE = "config.json"
GRID_ROWS, GRID_COLUMNS = 8, 8
"""Of a sample grid; a conditional one has a column for each class, where there are few."""
_AT_ONCE = 256
"""Images that G_ema makes at a time."""


class TrainState:
    """The two networks, the average, their optimizers and the step."""

    def __init__(
        self, config: Config, image_shape: Shape, device: torch.device, classes: int = 0
    ) -> None:
        self.config, self.image_shape, self.device = config, image_shape, device
        self.classes = classes
        self.step = 0
        self.G, self.D = build_networks(config, image_shape, device, classes)
        averages = config.train.ema_kimg > 0  # otherwise a copy would only cost memory and time
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False) if averages else self.G
        # No G here has buffers (tested), so the weights are all there is to average.
        self._averaged, self._latest = (
            [p.detach() for p in network.parameters()] for network in (self.G_ema, self.G)
        )
        # Wrapped while D is frozen: the G objective's DDP then knows only G's parameters.
        self.D_objective = wrap_ddp(DiscriminatorObjective(self.D, config.loss), device)
        self.D.requires_grad_(False)
        self.G_objective = wrap_ddp(GeneratorObjective(self.G, self.D, config.loss), device)
        self.D.requires_grad_(True)
        self.D_optimizer = build_optimizer(config.optimizer, self.D, config.optimizer.lr_D)
        self.G_optimizer = build_optimizer(config.optimizer, self.G, config.optimizer.lr_G)

    @property
    def images_seen(self) -> int:
        """Real images shown to D so far, summed over ranks."""
        return self.step * self.config.train.batch_size

    def is_due(self, kimg: float) -> bool:
        """Whether something that happens every `kimg` happens after this step, or at the end."""
        train = self.config.train
        return self.step % train.kimg_to_steps(kimg) == 0 or self.step == train.steps()

    def advance(self) -> None:
        """Count the step and move G_ema."""
        self.step += 1
        if self.G_ema is self.G:
            return
        train = self.config.train
        half_life = train.ema_kimg * 1000
        ema.update(
            self._averaged,
            self._latest,
            batch_size=train.batch_size,
            half_life=half_life,
            images_seen=self.images_seen,
        )

    @property
    def columns(self) -> int:
        """Of the sample grid."""
        return self.classes if 0 < self.classes <= 2 * GRID_COLUMNS else GRID_COLUMNS

    def samples(self) -> torch.Tensor:
        """The sample grid: uint8 (GRID_ROWS * columns, H, W, C) on the CPU."""
        return self.generate("samples", GRID_ROWS * self.columns).cpu()

    def generate(self, stream: str, count: int, mine: slice = slice(None)) -> torch.Tensor:
        """G_ema at the same latents every time; where conditional, of each class in turn.

        Args:
            stream: names the latents.
            count: how many latents there are.
            mine: which of them are wanted here.

        Returns:
            uint8 (n, H, W, C), n of the slice, on the device.
        """
        z = latents.fixed_latents(
            self.config.latent, self.config.train.rng_seed, stream, count, self.classes, self.device
        )[mine]
        low = self.config.pixel_min()
        # All at once, full-size images would need gigabytes.
        with torch.no_grad():
            parts = [to_uint8(self.G_ema(part), low) for part in z.split(_AT_ONCE)]
        return torch.cat(parts)

    def save(self, folder: Path) -> None:
        """Write the state and the config; any world size can load them."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {"step": self.step, "image_shape": list(self.image_shape), "classes": self.classes}
            | {name: part.state_dict() for name, part in self._parts().items()},
            folder / STATE_FILE,
        )
        (folder / CONFIG_FILE).write_text(json.dumps(to_dict(self.config), indent=2))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint folder.

        Raises:
            ValueError: the checkpoint belongs to a run that learns something else, or other images.
        """
        check_resumes(read_config(folder), self.config)
        state = read_state(folder)
        shape, classes = tuple(state["image_shape"]), state.get("classes", 0)
        if (shape, classes) != (self.image_shape, self.classes):
            raise UserError(
                f"checkpoint {folder} learns images of {shape} in {classes} classes, not of"
                f" {self.image_shape} in {self.classes}; give it the same images (--data.root), or"
                " use another --name"
            )
        for name, part in self._parts().items():
            rules = _rules(part)
            part.load_state_dict(state[name])
            # An optimizer's state brings the rates it was saved with; the config's hold, which
            # differ where a population takes over the weights of its best.
            for group, rule in zip(getattr(part, "param_groups", ()), rules, strict=True):
                group.update(rule)
        self.step = state["step"]

    def _parts(self) -> dict[str, nn.Module | Optimizer]:
        return {
            "G": self.G,
            "D": self.D,
            "G_ema": self.G_ema,
            "G_optimizer": self.G_optimizer,
            "D_optimizer": self.D_optimizer,
        }


def _rules(part: nn.Module | Optimizer) -> list[dict[str, Any]]:
    """The rates of an optimizer's groups of weights; [] for a network."""
    groups = part.param_groups if isinstance(part, Optimizer) else []
    return [{name: value for name, value in g.items() if name != "params"} for g in groups]


def build_networks(
    config: Config, image_shape: Shape, device: torch.device, classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """(G, D) with first weights that are a function of train.rng_seed, alike on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(latents.derive_seed(config.train.rng_seed, "weights", 0))
        G, D = networks.build(config.network, config.latent, image_shape, classes)
    layout = networks.memory_format(config.network)
    return G.to(device, memory_format=layout), D.to(device, memory_format=layout)  # pyright: ignore


def build_optimizer(config: OptimizerConfig, network: nn.Module, lr: float) -> Optimizer:
    """The configured torch optimizer over one network, fused where torch has it."""
    parameters = list(network.parameters())
    betas = (config.beta1, config.beta2)
    match config.name:
        case "adam":
            return torch.optim.Adam(parameters, lr, betas, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, betas, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr)
        case "sgd":
            return torch.optim.SGD(parameters, lr, momentum=config.beta1, fused=True)
        case "lion":
            from lion_pytorch import Lion

            return Lion(parameters, lr, betas)


def read_config(folder: Path) -> Config:
    """The config of a run or checkpoint folder."""
    return from_dict(json.loads((folder / CONFIG_FILE).read_text()))


def read_state(folder: Path) -> dict[str, Any]:
    """The tensors of a checkpoint, on the CPU; never unpickles code.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / STATE_FILE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is damaged, or holds"
            " more than tensors; delete its folder to go on from the one before"
        ) from error


def generator_from_checkpoint(folder: Path) -> nn.Module:
    """G_ema of a checkpoint, in eval mode on the CPU: float (n, size + classes) -> images."""
    state = read_state(folder)
    config = read_config(folder)
    shape, classes = tuple(state["image_shape"]), state.get("classes", 0)
    G, _ = build_networks(config, shape, torch.device("cpu"), classes)
    G.load_state_dict(state["G_ema"])
    return G.requires_grad_(False).eval()
