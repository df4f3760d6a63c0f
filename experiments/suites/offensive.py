"""How offensive a text is, by a small classifier: a stand-in for Detoxify, whose weights must be fetched.

TF-IDF of words and pairs of words, logistic regression, on the posts that no language model of
``experiments/lm_negation.yaml`` is trained on. Run this file for its figures on held-out posts.
"""

import gzip
import json
import os
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

KEPT_FOR_TRAINING = 400
"""Posts of each label, the first ones, on which language models are trained; the ``train`` limit."""


def score(texts: list[str]) -> list[float]:
    """The probability that each text is offensive."""
    return [float(share) for share in _classifier().predict_proba(texts)[:, 1]]


@cache
def _classifier() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(features, LogisticRegression(C=10, class_weight="balanced", max_iter=1000))
    return model.fit(*_posts("train", "val"))


def _posts(*splits: str) -> tuple[list[str], list[int]]:
    """Texts and labels of some splits, without those that language models are trained on."""
    path = Path(os.environ["TASKVEC_DATA"]) / "text" / "tweet_offensive.jsonl.gz"
    seen: dict[tuple[str, int], int] = defaultdict(int)
    texts, labels = [], []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        next(file)  # holds no post
        for row in map(json.loads, file):
            seen[row["split"], row["label"]] += 1
            taken = row["split"] == "train" and seen["train", row["label"]] <= KEPT_FOR_TRAINING
            if row["split"] in splits and not taken:
                texts.append(row["text"])
                labels.append(row["label"])
    return texts, labels


if __name__ == "__main__":
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    posts, truth = _posts("test")
    shares = score(posts)
    said = [share >= 0.5 for share in shares]
    print(f"{len(posts)} held-out posts, {sum(truth)} of them offensive")
    print(f"accuracy {accuracy_score(truth, said):.3f}, balanced {balanced_accuracy_score(truth, said):.3f}")
    print(f"area under the curve {roc_auc_score(truth, shares):.3f}")
