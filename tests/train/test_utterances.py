"""A resumed run names how its splits have changed."""

from pathlib import Path

from train.record.utterances import describe_changes, save_utterances
from vox.corpus import Utterance


def utterance(name: str, text: str = "go", num_samples: int = 9) -> Utterance:
    return Utterance(name, Path(f"{name}.wav"), text, "", num_samples=num_samples)


def test_changed_utterances_are_counted_and_named(tmp_path: Path) -> None:
    train = [utterance(name) for name in "abcdef"]
    save_utterances(tmp_path, {"train": train, "dev": [utterance("z")]})
    assert describe_changes(tmp_path, {"train": train[::-1]}) == ""
    now = [utterance("a", "stop"), utterance("b", num_samples=8), utterance("g"), utterance("z")]
    assert describe_changes(tmp_path, {"train": now}) == (
        "2 utterances added: g, z; 4 utterances removed: c, d, e and 1 more; "
        "2 utterances of another length or text: a, b"
    )
