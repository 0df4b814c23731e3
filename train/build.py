"""From a config to the parts of a run."""

import logging
from collections import Counter
from dataclasses import dataclass, replace

import torch

from train.adapt import add_replay, check_source_dev, name_source
from train.inputs import find_origin
from train.joined import join_names, repeat_utterances
from train.options import TrainOptions
from train.ranks import Ranks
from train.reader import Reader
from train.splits import TrainingSplit
from train.stages import find_stage
from vox.checkpoint.files import Checkpoint, load_recogniser, read_words
from vox.checkpoint.series import find_last
from vox.config import Config, TextConfig
from vox.corpus import Utterance, refuse_without_words
from vox.errors import CacheError, CheckpointError, ConfigError
from vox.features.fingerprint import Fingerprint, make_fingerprint
from vox.model.recogniser import Recogniser
from vox.text import Normaliser, Tokenizer, choose_vocab_size, fit_vocab_size, get_tokenizer
from vox.wavlm.extractor import FeatureExtractor, build_extractor
from vox.wavlm.mix import LayerMix
from vox.wavlm.shape import check_config_fits

log = logging.getLogger(__name__)

LARGE_VOCABULARY = 3  # times what `auto` takes: from there on a warning is due


@dataclass(frozen=True)
class Parts:
    """A model and its data, ready for the loop.

    origin: the checkpoint whose weights the run starts from, and its recorded state; None from scratch.
    fingerprint: of the cache that is read; None for live audio.
    source_dev: where stage 3 measures what is forgotten; None in other stages.
    words: how often an epoch has each word; without replay also those of the checkpoint that it adapts.
    cached_layer: the WavLM layer (counted from 1) whose output the cache holds; None: it holds the mix.
    """

    config: Config
    recogniser: Recogniser
    tokenizer: Tokenizer
    train: TrainingSplit
    dev: TrainingSplit
    source_dev: TrainingSplit | None
    words: dict[str, int]
    origin: Checkpoint | None
    fingerprint: Fingerprint | None
    cached_layer: int | None

    @property
    def splits(self) -> dict[str, TrainingSplit]:
        """Every split that is read, by its use: train, dev, and in stage 3 source_dev."""
        splits = {"train": self.train, "dev": self.dev, "source_dev": self.source_dev}
        return {use: split for use, split in splits.items() if split is not None}

    @property
    def utterances_by_use(self) -> dict[str, list[Utterance]]:
        """The utterances of `splits`."""
        return {use: split.utterances for use, split in self.splits.items()}


def build_parts(options: TrainOptions, config: Config, device: torch.device, ranks: Ranks) -> Parts:
    """Read the corpus, open the cache or the audio, and build or load model and tokenizer.

    Raises VoxError for anything that a user can fix, before any update.
    """
    torch.manual_seed(config.train.seed)
    origin = _load_origin(options, ranks)
    config, extractor = _begin(options, config, origin)
    options = replace(options, wavlm=config.features.wavlm)  # also where a config or a checkpoint names it
    cached_layer = _cached_layer(config) if options.cached else None
    fingerprint = _wanted_fingerprint(options, config, extractor, origin) if options.cached else None
    reader = Reader(options, config, fingerprint, extractor.wavlm.num_frames, pin=device.type == "cuda")
    weights = config.data.train_weights
    train_opened = reader.open(tuple(weights), speeds=config.data.speeds)
    dev_opened = reader.open_dev(config.data.dev_split)
    if origin is None:
        with ranks.first_goes_first():
            config, tokenizer = _make_tokenizer(options, config, train_opened[0], reader.normaliser)
        recogniser = Recogniser(config.model, extractor)
    else:
        recogniser, tokenizer = origin.recogniser, origin.tokenizer
    choose_trainable(recogniser, config, cached=options.cached)
    train = repeat_utterances(reader.label_train(weights, train_opened, tokenizer), weights)
    dev = reader.label(config.data.dev_split, dev_opened, tokenizer)
    source_dev = None
    if find_stage(options.stage).adapts:
        train, source_dev = _add_source(train, config, reader, tokenizer)
    for each in filter(None, (dev, source_dev)):
        refuse_without_words(each.name, each.utterances)
    recogniser = recogniser.to(device)
    if not ranks.is_first:  # the weights are the same everywhere, dropout is not
        torch.manual_seed(config.train.seed + ranks.rank)
    words = _count_words(options, train, origin)
    return Parts(
        config, recogniser, tokenizer, train, dev, source_dev, words, origin, fingerprint, cached_layer
    )


def _begin(
    options: TrainOptions, config: Config, origin: Checkpoint | None
) -> tuple[Config, FeatureExtractor]:
    """Return the config, with what the checkpoint decides, and WavLM: the checkpoint's, if there is one."""
    if origin is None:
        check_config_fits(config)
        return config, build_extractor(config.features.wavlm, config.features.layers)
    config = _adopt(config, origin.config)
    log.info("starting from the weights of %s", origin.folder)
    if find_stage(options.stage).adapts:
        config = name_source(config, origin.config)
        check_source_dev(options.root, config.adapt.source_dev_split or ())
    return config, origin.recogniser.extractor


def _add_source(
    train: TrainingSplit, config: Config, reader: Reader, tokenizer: Tokenizer
) -> tuple[TrainingSplit, TrainingSplit]:
    """Add what is replayed to a target; return it, and the dev split that measures what is forgotten."""
    adapt = config.adapt
    assert adapt.replay_split is not None and adapt.source_dev_split is not None
    if adapt.replay:
        source = reader.label_train(adapt.replay_split, reader.open(adapt.replay_split), tokenizer)
        train = add_replay(train, source)
        log.info("replaying %s: %g seconds of it per second", source.name, adapt.replay)
    else:
        log.warning(
            "NO REPLAY: nothing of %s is heard, and it may be forgotten; weights that forget it are not "
            "kept as best",
            join_names(adapt.replay_split),
        )
    opened = reader.open_dev(adapt.source_dev_split)
    return train, reader.label(adapt.source_dev_split, opened, tokenizer)


def _count_words(options: TrainOptions, train: TrainingSplit, origin: Checkpoint | None) -> dict[str, int]:
    """Count an epoch's words; in stage 3 without replay add those of the checkpoint, which still knows them.

    The checkpoint of a resumed run counts both.
    """
    if origin is None or not find_stage(options.stage).adapts or train.num_replayed:
        return train.word_counts
    old = Counter(read_words(origin.folder))
    return dict(sorted((old if options.resume else old + Counter(train.word_counts)).items()))


def choose_trainable(recogniser: Recogniser, config: Config, *, cached: bool) -> None:
    """Set what learns: everything above WavLM, the mix unless its output is cached, the unfrozen layers.

    Or the decoder alone (adapt.learns).
    """
    recogniser.requires_grad_(True)
    recogniser.extractor.wavlm.freeze_except(config.train.unfreeze_layers)
    recogniser.extractor.mix.requires_grad_(not cached or _cached_layer(config) is not None)
    if not config.adapt.ctc_learns:
        recogniser.requires_grad_(False)
        recogniser.decoder.requires_grad_(True)


def count_trainable(recogniser: Recogniser) -> int:
    """Count the parameters that learn."""
    return sum(p.numel() for p in recogniser.parameters() if p.requires_grad)


def _load_origin(options: TrainOptions, ranks: Ranks) -> Checkpoint | None:
    """Load the checkpoint to start from: --from's, the run's last (--resume), or an earlier stage's best."""
    if options.resume:
        # Only rank 0 looks, so that damage is logged once.
        folder = ranks.gather(find_last(options.run_dir) if ranks.is_first else None)[0]
        assert folder is not None
        return load_recogniser(folder, as_trained=True)
    origin = find_origin(options)
    return None if origin is None else load_recogniser(origin)


def _cached_layer(config: Config) -> int | None:
    """Return the layer (counted from 1) whose output stage 2 reads from its cache; None in stage 1.

    It is the one below the first that learns.
    """
    if not config.train.unfreeze_layers:
        return None
    layer = min(config.train.unfreeze_layers)
    if layer == 0:
        raise ConfigError(
            "all of WavLM's layers are to be trained, so none can be cached", remedy="leave --cached out"
        )
    return layer


def _wanted_fingerprint(
    options: TrainOptions, config: Config, extractor: FeatureExtractor, origin: Checkpoint | None
) -> Fingerprint:
    """Return the fingerprint of the cache that this run reads.

    Stage 2 changes WavLM's upper layers as it goes; the cache below them is that of the weights it
    started from, which its checkpoints name.
    """
    wavlm, mix, layer = extractor.wavlm, extractor.mix, _cached_layer(config)
    if layer is None:
        adapts = find_stage(options.stage).adapts
        _check_mix(
            mix, config, "leave --cached out" + (", or name stage 1's best with --from" if adapts else "")
        )
        return make_fingerprint(wavlm, config.features.layers)
    if mix.weights[: layer - 1].any():
        raise CacheError(
            f"the checkpoint's layer mix hears layers below {layer}, which a cache of layer {layer} lacks",
            remedy="leave --cached out",
        )
    fingerprint = make_fingerprint(wavlm, (layer,))
    if options.resume and origin is not None:
        fingerprint = replace(fingerprint, weights_sha256=origin.state["cache_weights"])
    return fingerprint


def _adopt(config: Config, loaded: Config) -> Config:
    """Take the model's and the features' sections from the checkpoint; refuse others that were asked for.

    A value that was asked for and equals the default looks like one left out: it is not refused,
    and the checkpoint's counts.
    """
    defaults, others = Config(), []
    for section in ("model", "features"):
        asked, held, default = (getattr(source, section) for source in (config, loaded, defaults))
        for key in type(asked).model_fields:
            if getattr(asked, key) not in (getattr(held, key), getattr(default, key), "auto"):
                values = f"checkpoint {getattr(held, key)}, config {getattr(asked, key)}"
                others.append(f"{section}.{key}: {values}")
    if others:
        raise CheckpointError(
            f"the checkpoint is of another shape than the config ({'; '.join(others)})",
            remedy="leave these out: they come from the checkpoint",
        )
    text = _adopt_text(config.text, loaded.text)
    return config.model_copy(update={"model": loaded.model, "features": loaded.features, "text": text})


def _adopt_text(asked: TextConfig, held: TextConfig) -> TextConfig:
    """Take the alphabet from the checkpoint; refuse another. How numbers are treated may change."""
    if asked.rules not in (held.rules, TextConfig().rules):
        shown = [f"{each.alphabet}, {each.language or 'no language'}" for each in (held, asked)]
        raise CheckpointError(
            f"the checkpoint has another alphabet than the config ({shown[0]}; config: {shown[1]})",
            remedy="leave text.alphabet and text.language out: they come from the checkpoint",
        )
    if asked.numbers != "spell":
        return held
    if held.language is None and held.alphabet != "english":
        raise CheckpointError(
            "numbers are spelled in a language, and the checkpoint has none",
            remedy="leave text.numbers out, and write numbers as words",
        )
    return held.model_copy(update={"numbers": asked.numbers})


def _check_mix(mix: LayerMix, config: Config, remedy: str) -> None:
    """Refuse to train from a cache when the checkpoint's layer mix has moved away from the cached one."""
    cached = LayerMix.mean_of(config.features.layers, len(mix.weights))
    if not torch.equal(mix.weights.detach().cpu(), cached.weights.detach()):
        raise CacheError(
            "the checkpoint has learnt a layer mix of its own, so cached features are not its features",
            remedy=remedy,
        )


def _make_tokenizer(
    options: TrainOptions, config: Config, utterances: list[Utterance], normaliser: Normaliser
) -> tuple[Config, Tokenizer]:
    """Load or train the tokenizer; return it and the config with the vocabulary's size as a number."""
    once = config.data.speeds[0]  # or every transcript would count once for each speed
    texts = [utterance.text for utterance in utterances if utterance.speed == once]
    fitting = choose_vocab_size(texts, normaliser)
    if config.model.vocab_size == "auto":
        fitting = fit_vocab_size(texts, fitting, normaliser)
        log.info("model.vocab_size: auto is %d for these transcripts", fitting)
        model = config.model.model_copy(update={"vocab_size": fitting})
        config = config.model_copy(update={"model": model})
    elif config.model.num_pieces > LARGE_VOCABULARY * fitting:
        log.warning(
            "a vocabulary of %d pieces is large for these transcripts, and rare pieces are hard to learn: "
            "model.vocab_size=auto would take %d; configs/small.yaml is for small corpora",
            config.model.num_pieces,
            fitting,
        )
    size = config.model.num_pieces
    return config, get_tokenizer(options.root, join_names(config.data.train_weights), texts, size, normaliser)
