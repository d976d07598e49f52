"""scikit-learn's metrics of the data of scikit_learn_test.cpp, all rows at once.

usage: python scikit_learn.py folder

The folder holds <name>.<dtype>, raw and flat, as numpy calls the dtype. Writes expected.txt: a line for each value or row
of values, its name in front. It leaves with 3 where scikit-learn is not installed.
"""

import sys
import warnings
from pathlib import Path

try:
    import numpy as np
    from sklearn import metrics
except ImportError as error:
    print(error)
    sys.exit(3)

warnings.simplefilter("ignore")  # divisions by zero and classes without rows are what is asked for
folder = Path(sys.argv[1])
lines = []


def read(name, *shape):
    (path,) = folder.glob(name + ".*")
    return np.fromfile(path, dtype=path.suffix[1:]).reshape(-1, *shape)


def say(name, *values):
    flat = np.concatenate([np.asarray(value, dtype=np.float64).ravel() for value in values])
    lines.append(" ".join([name, *map(repr, flat.tolist())]))


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def say_scores(name, target, prediction, classes, averages):
    for beta in (1.0, 0.5, 2.0):
        for zero_division in (0.0, 1.0, np.nan):
            options = {"beta": beta, "zero_division": zero_division}
            by_class = metrics.precision_recall_fscore_support(target, prediction, labels=range(classes), **options)
            for average in averages:
                scores = metrics.precision_recall_fscore_support(target, prediction, average=average, **options)
                say(f"{name}.{average}.{beta:g}.{zero_division:g}", scores[:3], *by_class)


# Class scores.
logits, target = read("logits", 7), read("target")
say("accuracy", metrics.accuracy_score(target, logits.argmax(1)))
for k in (2, 3):
    say(f"top{k}", metrics.top_k_accuracy_score(target, logits, k=k, labels=range(7)))
for name, normalize in {"matrix": None, "matrix.target": "true", "matrix.prediction": "pred", "matrix.all": "all"}.items():
    say(name, metrics.confusion_matrix(target, logits.argmax(1), labels=range(7), normalize=normalize))
say_scores("dense", target, logits.argmax(1), 7, ("macro", "weighted", "micro"))
say("perplexity", np.exp(metrics.log_loss(target, softmax(logits.astype(np.float64)), labels=range(7))))

# Labels, where some classes are no target, some no prediction, and some neither.
say_scores("sparse", read("sparse_target"), read("sparse_prediction"), 9, ("macro", "weighted", "micro"))
say("sparse.matrix", metrics.confusion_matrix(read("sparse_target"), read("sparse_prediction"), labels=range(9)))

# Scores of class 1 of two, in thousandths, and not.
scores, smooth, flags = read("scores"), read("smooth"), read("flags")
say("binary.accuracy", metrics.accuracy_score(flags, scores > 0.5))
say_scores("binary", flags, scores > 0.5, 2, ("binary", "macro", "weighted"))
say("auroc.binary", metrics.roc_auc_score(flags, scores))
say("auroc.smooth", metrics.roc_auc_score(flags, smooth))
shares, share_target = read("shares", 4), read("share_target")
say("auroc.shares", metrics.roc_auc_score(share_target, shares, multi_class="ovr", average="macro"))
say("auroc.classes", [metrics.roc_auc_score(share_target == c, shares[:, c]) for c in range(4)])

# Tokens, some of them ignored.
tokens, token_target = read("tokens", 6, 3).transpose(0, 2, 1).reshape(-1, 6), read("token_target", 3).reshape(-1)
kept = token_target != -100
say("tokens", np.exp(metrics.log_loss(token_target[kept], softmax(tokens[kept]), labels=range(6))))
say("tokens.accuracy", metrics.accuracy_score(token_target[kept], tokens[kept].argmax(1)))

# Numbers, of which the second has a large mean.
truth, guess = read("truth", 3), read("guess", 3)
for output in range(3):
    y, p = truth[:, output], guess[:, output]
    say(f"regression.{output}", metrics.mean_squared_error(y, p), metrics.root_mean_squared_error(y, p),
        metrics.mean_absolute_error(y, p), metrics.mean_absolute_percentage_error(y, p), metrics.max_error(y, p),
        metrics.r2_score(y, p))
say("regression", metrics.mean_squared_error(truth, guess), metrics.root_mean_squared_error(truth, guess),
    metrics.mean_absolute_error(truth, guess), metrics.mean_absolute_percentage_error(truth, guess),
    np.abs(truth - guess).max(), metrics.r2_score(truth, guess))
say("mean", np.average(truth[:, 0], weights=read("weights")))

(folder / "expected.txt").write_text("\n".join(lines) + "\n")
