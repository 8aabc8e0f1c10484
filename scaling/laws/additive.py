"""Additive power law in model size and data (Hoffmann et al. 2022, Eq. 2).

L = E + A N^-alpha + B D^-beta
"""

from scaling.power_sum import PowerSum

LAW = PowerSum("additive", "L = E + A N^-alpha + B D^-beta", {"E": {}, "A": {"N": "alpha"}, "B": {"D": "beta"}})
