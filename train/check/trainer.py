"""Updates outside a run: a recogniser made ready for one way of training, for checks and benchmarks."""

from collections.abc import Iterable

import torch

from train.build import choose_trainable
from train.ranks import Ranks
from train.update.schedule import build_optimizer
from train.update.step import LabelTotals, StepSettings, UpdateResult, run_update, wrap_losses
from vox.config import Config
from vox.data.batch import LabelBatch
from vox.hear import Batch
from vox.model.recogniser import Recogniser
from vox.wavlm.mix import LayerMix


class Trainer:
    """What `vox train` builds for its updates, and nothing around them.

    The recogniser is in training mode from here on; what learns follows the config, and whether features come
    from a cache. Its layer mix begins as the config says, whatever it was before.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        *,
        cached: bool,
    ) -> None:
        self.recogniser, self.device = recogniser, device
        num_layers = recogniser.extractor.wavlm.num_layers
        # A former trainer may have trained it, and a mix of all layers is more work.
        recogniser.extractor.mix = LayerMix.mean_of(config.features.layers, num_layers).to(device)
        choose_trainable(recogniser, config, cached=cached)
        recogniser.train()
        self.losses = wrap_losses(recogniser, Ranks())
        self.optimizer = build_optimizer(recogniser, config.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        self.settings = StepSettings.from_config(
            config,
            device,
            dtype,
            ctc_weight=config.train.ctc_weight,
            # Stage 2 goes on from the layer below the first that learns.
            cached_layer=min(config.train.unfreeze_layers, default=None) if cached else None,
        )

    def update(self, totals: LabelTotals, batches: Iterable[tuple[Batch, LabelBatch]]) -> UpdateResult:
        """Run one update."""
        return run_update(self.losses, self.optimizer, self.scaler, batches, totals, self.settings, Ranks())
