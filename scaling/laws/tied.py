"""Additive law with one exponent for both inputs (Hoffmann et al. 2022, Eq. 2, with alpha = beta).

L = E + A N^-alpha + B D^-alpha
"""

from scaling.power_sum import PowerSum

LAW = PowerSum("tied", "L = E + A N^-alpha + B D^-alpha", {"E": {}, "A": {"N": "alpha"}, "B": {"D": "alpha"}})
