"""Minimise a jagged function: torch.optim on `rsfast.smoothed` gets to the bottom, and plain gradient descent gets stuck.

The function is a bowl with waves and steps on it. Its own gradient points into the nearest wave; that of its smoothed
version, E f(x + noise), points down the bowl. Less and less noise then lets the waves back in. Run it as it is: it takes
seconds on a CPU.
"""

import torch

import rsfast

DIM, STEPS = 10, 300
START = torch.linspace(-3.0, 4.0, DIM)


def jagged(x):
    """From x [B, DIM] to [B]: 0 at x = 0, and positive elsewhere."""
    waves, steps = 1 - torch.cos(12 * x), (4 * x.abs()).floor() / 4
    return (x.square() + waves + steps).mean(dim=1)


def plain(optimizer, rate):
    """Return where an optimiser ends that follows the function's own gradient."""
    x = START.clone().requires_grad_()
    optimizer = optimizer([x], lr=rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        jagged(x[None]).sum().backward()
        optimizer.step()
    return x.detach()


def smoothed(optimizer, rate, sigmas=(0.5, 0.2, 0.05)):
    """Return where it ends on the smoothed function, with less noise in each third of the steps."""
    x = START.clone().requires_grad_()
    optimizer = optimizer([x], lr=rate)
    for seed, sigma in enumerate(sigmas):
        g = rsfast.smoothed(jagged, rsfast.Gaussian(sigma), n=100, seed=seed)
        for _ in range(STEPS // len(sigmas)):
            optimizer.zero_grad()
            g(x).backward()
            optimizer.step()
    return x.detach()


def value(x):
    return float(jagged(x[None]))


def main():
    """Print and return what the function is at both ends, for SGD and Adam: plain, at its best rate, and smoothed."""
    print(f"at the start: {value(START):.3f}")
    found = []
    for optimizer in (torch.optim.SGD, torch.optim.Adam):
        best = min(value(plain(optimizer, rate)) for rate in (0.03, 0.1, 0.3, 1.0))
        ours = value(smoothed(optimizer, 0.1))
        print(f"{optimizer.__name__}: {best:.3f} plain, at the best of four learning rates; {ours:.3f} smoothed")
        found.append((best, ours))
    return found


if __name__ == "__main__":
    for best, ours in main():
        assert ours < best / 10, "smoothing must reach a tenth of what plain gradient descent does"
