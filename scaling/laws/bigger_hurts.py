"""Additive law with over-fitting: a term that grows with the model and shrinks with the data.

L = E + A N^-alpha + B D^-beta + c N^g D^-d

The added term is what a bias-variance trade-off adds to Hoffmann et al. 2022, Eq. 2: variance grows with the number
of parameters and falls with the number of samples. *No published fit of this form is known to us.*
"""

from scaling.power_sum import PowerSum

LAW = PowerSum(
    "bigger_hurts",
    "L = E + A N^-alpha + B D^-beta + c N^g D^-d",
    {"E": {}, "A": {"N": "alpha"}, "B": {"D": "beta"}, "c": {"N": "g", "D": "d"}},
    rising=("g",),
    positive=True,
)
