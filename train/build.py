"""From a config to the parts of a run."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from train.options import TrainOptions
from train.splits import TrainingSplit, label_split, open_dev_source, open_source
from vox.checkpoint import check_files, find_last, load_recogniser
from vox.config import Config
from vox.corpus import Utterance
from vox.errors import CacheError, CheckpointError
from vox.features.fingerprint import make_fingerprint
from vox.model.recogniser import Recogniser
from vox.text import Tokenizer, get_tokenizer
from vox.wavlm.extractor import build_extractor
from vox.wavlm.mix import LayerMix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """A model and its data, ready for the loop.

    origin: the checkpoint whose weights the run starts from, and its recorded state; None from scratch.
    """

    config: Config
    recogniser: Recogniser
    tokenizer: Tokenizer
    train: TrainingSplit
    dev: TrainingSplit
    origin: tuple[Path, dict] | None


def build_parts(options: TrainOptions, config: Config, device: torch.device) -> Parts:
    """Read the corpus, open the cache or the audio, and build or load model and tokenizer.

    Raises VoxError for anything that a user can mend, before any update.
    """
    torch.manual_seed(config.train.seed)
    origin_path = _find_origin(options)
    origin = None
    tokenizer = None
    if origin_path is None:
        extractor = build_extractor(config.features.wavlm, config.features.layers)
        recogniser = Recogniser(config.model, extractor)
    else:
        loaded = load_recogniser(origin_path)
        recogniser, tokenizer, origin = loaded.recogniser, loaded.tokenizer, (origin_path, loaded.state)
        config = _adopt(config, loaded.config)
        log.info("starting from the weights of %s", origin_path)
    choose_trainable(recogniser, config, cached=options.cached)
    fingerprint = (
        make_fingerprint(recogniser.extractor.wavlm, config.features.layers) if options.cached else None
    )
    if options.cached:
        _check_mix(recogniser.extractor.mix, config)
    pin = device.type == "cuda"
    workers = config.data.workers
    split = config.data.train_split
    train_utterances, train_source = open_source(options, split, fingerprint, workers=workers, pin=pin)
    dev_utterances, dev_source = open_dev_source(
        options, config.data.dev_split, fingerprint, workers=workers, pin=pin
    )
    if tokenizer is None:
        tokenizer = _tokenizer_of(options, config, train_utterances)
    count_frames = recogniser.extractor.wavlm.num_frames
    train = label_split(
        split, train_utterances, train_source, tokenizer, count_frames, skip_bad=options.skip_bad
    )
    dev = label_split(
        config.data.dev_split, dev_utterances, dev_source, tokenizer, count_frames, skip_bad=options.skip_bad
    )
    return Parts(config, recogniser.to(device), tokenizer, train, dev, origin)


def choose_trainable(recogniser: Recogniser, config: Config, *, cached: bool) -> None:
    """Set what learns: everything above WavLM, the mix unless its output is cached, the unfrozen layers."""
    recogniser.requires_grad_(True)
    recogniser.extractor.wavlm.freeze_except(config.train.unfreeze_layers)
    recogniser.extractor.mix.requires_grad_(not cached)


def count_trainable(recogniser: Recogniser) -> int:
    """Count the parameters that learn."""
    return sum(p.numel() for p in recogniser.parameters() if p.requires_grad)


def _find_origin(options: TrainOptions) -> Path | None:
    """Return the checkpoint to start from: --from's, the run's last (--resume), or stage 1's best."""
    if options.resume:
        return find_last(options.run_dir)
    if options.from_checkpoint is not None:
        check_files(options.from_checkpoint)
        return options.from_checkpoint
    if options.stage == 1:
        return None
    best = Path("runs/stage1/best")
    if not best.exists():
        raise CheckpointError(
            "no stage-1 checkpoint to start from",
            where=best,
            remedy="run vox train --stage 1 --cached first, or name one with --from",
        )
    return best


def _adopt(config: Config, loaded: Config) -> Config:
    """Take the model's and the features' sections from the checkpoint; refuse others that were asked for.

    A value that was asked for and equals the default cannot be told from one left out: it is not refused,
    and the checkpoint's counts.
    """
    defaults = Config()
    for section in ("model", "features"):
        asked, held, default = (getattr(source, section) for source in (config, loaded, defaults))
        for key in type(asked).model_fields:
            if getattr(asked, key) not in (getattr(held, key), getattr(default, key)):
                raise CheckpointError(
                    f"the checkpoint is of another shape than the config ({section}.{key}: checkpoint "
                    f"{getattr(held, key)}, config {getattr(asked, key)})",
                    remedy=f"leave {section} out: it comes from the checkpoint",
                )
    return config.model_copy(update={"model": loaded.model, "features": loaded.features})


def _check_mix(mix: LayerMix, config: Config) -> None:
    """Refuse to train from a cache when the checkpoint's layer mix has moved away from the cached one."""
    cached = LayerMix.mean_of(config.features.layers, len(mix.weights))
    if not torch.equal(mix.weights.detach().cpu(), cached.weights.detach()):
        raise CacheError(
            "the checkpoint has learnt a layer mix of its own, so cached features are not its features",
            remedy="leave --cached out",
        )


def _tokenizer_of(options: TrainOptions, config: Config, utterances: list[Utterance]) -> Tokenizer:
    texts = [utterance.text for utterance in utterances]
    return get_tokenizer(options.root, config.data.train_split, texts, config.model.vocab_size)
