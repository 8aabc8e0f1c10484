"""Power law in model size alone (Kaplan et al. 2020, Eq. 1.1, with an irreducible term): the null "no D".

L = E + A N^-alpha
"""

from scaling.power_sum import PowerSum

LAW = PowerSum("power_n", "L = E + A N^-alpha", {"E": {}, "A": {"N": "alpha"}})
