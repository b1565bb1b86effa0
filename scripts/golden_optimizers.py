#!/usr/bin/env python3
"""Makes tests/golden/optimizers.json: what other implementations make of the same gradients.

    scripts/golden_optimizers.py > tests/golden/optimizers.json

Needs torch and numpy (Debian: python3-torch, python3-numpy). torch.optim runs in fp64, on hyper-parameters and data that
are exact in fp32, so that rounding is all that may differ. FTRL-Proximal, which torch lacks, is the pseudo-code of
McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, Algorithm 1, in numpy.
"""

import json

import numpy as np
import torch

STEPS = 100
WIDTH = 8
SNAPSHOTS = [1, 2, 3, 10, 100]


def exact(value):
    """The fp32 nearest to `value`, as a float."""
    return float(np.float32(value))


def data():
    random = np.random.default_rng(20131)
    start = random.normal(0, 1, WIDTH).astype(np.float32)
    scale = np.array([1, 1e-3, 10, 1, 0.1, 1, 1, 1])
    gradients = (random.normal(0, 1, (STEPS, WIDTH)) * scale + 0.3 * scale).astype(np.float32)
    gradients[:, 5] *= random.random(STEPS) < 0.2  # rarely touched
    gradients[:, 6] = 0  # never touched
    return start, gradients


def by_torch(make, start, gradients):
    w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = make([w])
    snapshots = {}
    for step, gradient in enumerate(gradients, 1):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        if step in SNAPSHOTS:
            snapshots[step] = w.detach().numpy().tolist()
    return snapshots


def by_ftrl(alpha, beta, l1, l2, gradients):
    z = np.zeros(WIDTH)
    n = np.zeros(WIDTH)
    snapshots = {}

    def weights():
        w = -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)
        return np.where(np.abs(z) <= l1, 0.0, w)

    for step, gradient in enumerate(gradients, 1):
        w = weights()
        g = gradient.astype(np.float64)
        sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / alpha
        z += g - sigma * w
        n += g * g
        if step in SNAPSHOTS:
            snapshots[step] = weights().tolist()
    return snapshots


def main():
    start, gradients = data()
    rate, mu, alpha, b1, b2 = (exact(v) for v in (0.05, 0.9, 0.99, 0.9, 0.999))
    tiny, small, decay = exact(1e-10), exact(1e-8), exact(0.01)
    adam = {"rate": rate, "beta1": b1, "beta2": b2, "epsilon": small}
    torch_kwargs = {"lr": rate, "betas": (b1, b2), "eps": small}
    optim = torch.optim
    rules = [
        ("sgd", {"rate": rate}, lambda p: optim.SGD(p, lr=rate)),
        ("momentum", {"rate": rate, "momentum": mu}, lambda p: optim.SGD(p, lr=rate, momentum=mu)),
        (
            "nesterov",
            {"rate": rate, "momentum": mu},
            lambda p: optim.SGD(p, lr=rate, momentum=mu, nesterov=True),
        ),
        ("adagrad", {"rate": rate, "epsilon": tiny}, lambda p: optim.Adagrad(p, lr=rate, eps=tiny)),
        (
            "rmsprop",
            {"rate": rate, "alpha": alpha, "epsilon": small},
            lambda p: optim.RMSprop(p, lr=rate, alpha=alpha, eps=small),
        ),
        ("adam", adam, lambda p: optim.Adam(p, **torch_kwargs)),
        (
            "adamw",
            {**adam, "weight_decay": decay},
            lambda p: optim.AdamW(p, **torch_kwargs, weight_decay=decay),
        ),
    ]
    cases = [
        {"name": name, "parameters": parameters, "source": f"torch {torch.__version__}",
         "start": start.tolist(), "weights": by_torch(make, start, gradients)}
        for name, parameters, make in rules
    ]
    ftrl = {k: exact(v) for k, v in {"alpha": 0.1, "beta": 1.0, "l1": 0.5, "l2": 0.01}.items()}
    cases.append(
        {"name": "ftrl", "parameters": ftrl, "source": f"KDD 2013, Algorithm 1, numpy {np.__version__}",
         "start": [0.0] * WIDTH, "weights": by_ftrl(**ftrl, gradients=gradients)}
    )
    print(json.dumps({"gradients": gradients.tolist(), "cases": cases}, indent=None).replace('{"name"', '\n{"name"'))


main()
