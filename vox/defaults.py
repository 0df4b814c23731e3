"""What counts where nothing else is given. Imports nothing, so that the command line may read it."""

DEFAULT_WAVLM = "microsoft/wavlm-base"
DEFAULT_LAYERS = (9, 10, 11, 12)  # averaged, counted from 1
LARGEST_WEIGHT = 1000.0  # of a language model or a hotword: beyond it, a mistake
NUM_UNFROZEN_LAYERS = 3  # WavLM's topmost, which stage 2 trains by default (configs/stage2.yaml names them)
