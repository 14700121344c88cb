"""``fedmitr predict RUN_DIR IMAGE...``: classify images with a run's global model."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fedmitr_app.errors import ConfigError
from fedmitr_app.predictor import ENSEMBLE, MODEL, Prediction, load
from fedmitr_app.utils.text import harmless


def main(arguments: Sequence[str]) -> int:
    """Run the command; raises ``FedmitrError`` for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="fedmitr predict",
        description="Classify images with the global model of a run folder.",
    )
    parser.add_argument("run_dir", type=Path, help="folder of a run that has ended")
    parser.add_argument("images", nargs="+", metavar="image", help="image files")
    parser.add_argument("--top", type=int, default=1, help="classes shown of each (default 1)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each image")
    parser.add_argument(
        "--ensemble", action="store_true", help="ask the ensemble instead of the global model"
    )
    parser.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda' or 'cuda:N'")
    asked = parser.parse_args(arguments)
    if asked.top < 1:
        raise ConfigError.bad_value("--top", asked.top, "a whole number of at least 1")
    predictor = load(asked.run_dir, ENSEMBLE if asked.ensemble else MODEL, asked.device)
    found = predictor.predict(asked.images)
    for image, prediction in zip(asked.images, found, strict=True):
        print(_as_json(image, prediction) if asked.json else _told(image, prediction, asked.top))
    return 0


def _told(image: str, prediction: Prediction, top: int) -> str:
    ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:top]
    shares = ", ".join(f"{label} {100 * share:.1f} %" for label, share in ranked)
    return f"{harmless(image)}: {shares}"


def _as_json(image: str, prediction: Prediction) -> str:
    return json.dumps({"image": image, **prediction._asdict()}, ensure_ascii=False)
