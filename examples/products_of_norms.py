"""
Products of layer norms say nothing about a deep network
========================================================

The product of the spectral norms of all layers bounds the Lipschitz constant of a network (Szegedy et al., 2014). Delattre
et al. ("Bridging the Theoretical Gap in Randomized Smoothing", 2025) show how loose it can be: for 110 linear layers with
PyTorch's initial weights it is about 270,000, and the network hardly passes on its input at all.

You will see the bound beside the true norm, layer by layer, and then layers for which the same bound is tight.
"""

import math

import matplotlib.pyplot as plt
import torch
from paper import QUICK, record
from torch import nn

import rsfast

# %%
# The network
# -----------
#
# It is linear, so one matrix is the whole network, and the largest singular value of that matrix is its Lipschitz constant.
# Layers map 100 numbers to 100, and the last one to 10. Weights are drawn as in the script that the authors publish.

depth = 110


def draw(seed, initialise):
    """Return the layers of the network with random weights."""
    layers = [nn.Linear(100, 100) for _ in range(depth - 1)] + [nn.Linear(100, 10)]
    torch.manual_seed(seed)
    for layer in layers:
        initialise(layer.weight.requires_grad_(False))
    return layers


def as_pytorch(weight):
    """Draw weights as ``nn.Linear`` does by default."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


layers = draw(0, as_pytorch)
bound = rsfast.lipschitz_bound(nn.Sequential(*layers).eval(), (100,))

# %%
# The true norm, in float64
# -------------------------
#
# The product falls by many powers of ten, so each step divides it by its norm and keeps the logarithm of that. The
# direction that survives is then known to float64 precision at every depth.


def true_norms(layers):
    """Return the spectral norm of the product of the first 1, 2, ... layers, as base-10 logarithms."""
    product, logarithm, found = torch.eye(100, dtype=torch.float64), 0.0, []
    for layer in layers:
        product = layer.weight.double() @ product
        norm = float(torch.linalg.matrix_norm(product, ord=2))
        logarithm += math.log10(norm)
        product = product / norm
        found.append(logarithm)
    return found


truth = true_norms(layers)
norms = torch.tensor([float(torch.linalg.matrix_norm(layer.weight.double(), ord=2)) for layer in layers])
products = norms.log10().cumsum(0).tolist()

# %%
# Most directions shrink more than the one that shrinks least. This is the root mean square over all directions:

matrix = torch.eye(100, dtype=torch.float64)
for layer in layers:
    matrix = layer.weight.double() @ matrix
typical = float(torch.linalg.matrix_norm(matrix) / math.sqrt(100))

# %%
# Where the product is tight
# --------------------------
#
# The bound loses because each layer's largest singular direction is another one. Orthogonal layers have no such direction:
# all singular values are 1, and so is their product. This is why networks that are trained for a small bound use them.

orthogonal = draw(0, nn.init.orthogonal_)
orthogonal_bound = rsfast.lipschitz_bound(nn.Sequential(*orthogonal).eval(), (100,))
orthogonal_truths = true_norms(orthogonal)
orthogonal_truth = 10 ** orthogonal_truths[-1]

# %%
# Other seeds
# -----------
#
# The gap does not depend on the draw of the weights.

gaps = []
for seed in range(2 if QUICK else 8):
    drawn = draw(seed, as_pytorch)
    gaps.append(math.log10(rsfast.lipschitz_bound(nn.Sequential(*drawn).eval(), (100,))) - true_norms(drawn)[-1])

# %%
# The figure
# ----------

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
depths = range(1, depth + 1)
ax.plot(depths, products, "C1", label="product of norms")
ax.plot(depths, truth, "C0", label="true norm")
ax.plot(depth, math.log10(bound), "C1o", label="rsfast.lipschitz_bound")
ax.plot(depths, orthogonal_truths, "C7:", label="true norm of orthogonal layers")
ax.set(title="110 random layers: the bound is over 30 powers of ten off", xlabel="layers", ylabel="log10 of the norm")
ax.legend(loc="lower left")

# %%
# What this example claims
# ------------------------

record("bridging", "products of layer norms: bound for 110 random linear layers", bound, 2.7e5)
record(
    "bridging",
    "products of layer norms: true norm of these layers",
    10 ** truth[-1],
    "about 1e-27",
    f"float64; the root mean square over all directions is {typical:.2g}, and no direction keeps more than ours says",
)
record(
    "bridging",
    "products of layer norms: bound over true norm for orthogonal layers",
    orthogonal_bound / orthogonal_truth,
    None,
    "the other side: the bound is tight where layers are orthogonal, but for less than 0.1 % a layer",
)

assert 2.6e5 < bound < 2.8e5
assert abs(math.log10(bound) - products[-1]) < 1e-4
assert 1e-27 < 10 ** truth[-1] < 1e-25
assert 1e-28 < typical < 1e-26
assert orthogonal_truth <= orthogonal_bound < 1.001**depth * orthogonal_truth
assert min(gaps) > 30
