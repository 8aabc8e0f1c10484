"""Power law in data alone (Kaplan et al. 2020, Eq. 1.2, with an irreducible term): the null "no N".

L = E + B D^-beta
"""

from scaling.power_sum import PowerSum

LAW = PowerSum("power_d", "L = E + B D^-beta", {"E": {}, "B": {"D": "beta"}})
