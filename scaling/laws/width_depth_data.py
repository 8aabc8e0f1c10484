"""Width, depth and data as separate terms (after McLeish et al. 2025, "Gemstones", whose width-depth law this is).

L = E + A width^-alpha + C depth^-gamma + B D^-beta

DEVIATION: the paper's law has a fourth term in the parameter count, which is nearly a function of the other two.
"""

from scaling.power_sum import PowerSum

LAW = PowerSum(
    "width_depth_data",
    "L = E + A width^-alpha + C depth^-gamma + B D^-beta",
    {"E": {}, "A": {"width": "alpha"}, "C": {"depth": "gamma"}, "B": {"D": "beta"}},
)
